# Thin on purpose: each target is one script, which says what it needs.
.PHONY: run test test-vm simulate lint bench

run:    ## build Ostler and start the quickstart
	@scripts/run-quickstart.sh

test:   ## every test, installing what it needs
	@scripts/test.sh

test-vm: ## what needs cgroup v2, in a small virtual machine
	@scripts/test-vm.sh

lint:   ## format, lints, documentation, licences
	@scripts/lint.sh

bench:  ## the benchmarks against its peers
	@bench/run.py gateway
	@bench/run.py churn
	@bench/run.py supervision
	@bench/run.py hogs
	@bench/run.py sessions
	@bench/run.py tasks
	@bench/run.py backlog

simulate: ## 100,000 seeded lives of the supervisor on a simulated system (minutes)
	@cargo run --quiet --locked -p ostler-testkit --features sim --bin ostler-simulate -- 0 100000
