//! What a person means by an ID: a server, one of its instances, or a process of one.

use ostler_api::{Client, ServerView};

use crate::exit::Failure;

/// What an ID names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// A server, with all its instances.
    Server(String),
    /// One instance.
    Instance(String),
}

impl Target {
    /// Asks the daemon what `id` names: a server, an instance, or the instance of this process. The first of these
    /// wins, should several exist.
    pub(crate) async fn find(client: &Client, id: &str) -> Result<Self, Failure> {
        let found = Self::among(&client.servers().await?, id);
        if let (Err(_), Ok(pid)) = (&found, id.parse())
            && let Some(instance) = client.instance_of(pid).await?
        {
            return Ok(Self::Instance(instance.id));
        }
        found
    }

    fn among(servers: &[ServerView], id: &str) -> Result<Self, Failure> {
        if servers.iter().any(|server| server.name == id) {
            return Ok(Self::Server(id.to_owned()));
        }
        let mut instances = servers.iter().flat_map(|server| &server.instances);
        if instances.any(|instance| instance.id == id) {
            return Ok(Self::Instance(id.to_owned()));
        }
        let names = servers.iter().flat_map(|server| {
            std::iter::once(&server.name).chain(server.instances.iter().map(|instance| &instance.id))
        });
        let nearest = names
            .map(|name| (strsim::damerau_levenshtein(name, id), name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
            .map(|(_, name)| name.clone());
        Err(Failure::Unknown { id: id.to_owned(), nearest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_server_an_instance_a_near_miss_and_nothing() {
        let servers = samples::servers();
        let find = |id| Target::among(&servers, id);
        assert_eq!(find("github").expect("server"), Target::Server("github".into()));
        assert_eq!(find("github.1").expect("instance"), Target::Instance("github.1".into()));
        let near = find("githbu").expect_err("a slip");
        assert_eq!(
            near.report(),
            "error: no server or instance is called `githbu`\nhint: did you mean `github`?\n"
        );
        let far = find("postgres").expect_err("unknown");
        assert_eq!(
            far.report(),
            "error: no server or instance is called `postgres`\nhint: `ostler ps` lists what there is\n"
        );
    }
}
