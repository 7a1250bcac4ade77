#!/usr/bin/env node
// `execute-code`, `execute-function` and `execute-module` in Node, each task in a process of its own.

import { realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { resolve, sep } from 'node:path';
import { pathToFileURL } from 'node:url';

import { Invalid, Refused, serve } from './index.mjs';

const AsyncFunction = (async () => {}).constructor;
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

function fields(payload, required, optional) {
  if (!isObject(payload)) throw new Invalid('the payload is no object');
  const known = { ...required, ...optional, language: 'string' };
  for (const [name, value] of Object.entries(payload)) {
    const wanted = Object.hasOwn(known, name) ? known[name] : undefined;
    if (wanted === undefined) throw new Invalid(`the payload has no member \`${name}\`; it has ${Object.keys(known).join(', ')}`);
    const is = Array.isArray(value) ? 'array' : typeof value;
    if (wanted !== 'any' && wanted !== is) throw new Invalid(`\`${name}\` is of the wrong type`);
  }
  for (const name of Object.keys(required)) {
    if (payload[name] === undefined) throw new Invalid(`the payload lacks \`${name}\``);
  }
  if (!['javascript', 'node'].includes(payload.language ?? 'node')) {
    throw new Invalid(`this worker knows \`language\` node, not ${payload.language}`);
  }
}

function compiled(compile) {
  try {
    return compile();
  } catch (error) {
    if (error instanceof SyntaxError) throw new Invalid(`SyntaxError: ${error.message}`);
    throw error;
  }
}

function allowed(path, folders) {
  let real;
  try {
    real = realpathSync(resolve(path));
  } catch {
    throw new Invalid(`there is no module ${path}`);
  }
  for (const folder of [process.cwd(), ...folders]) {
    let root;
    try {
      root = realpathSync(folder);
    } catch {
      continue;
    }
    if (real === root || real.startsWith(root === sep ? sep : root + sep)) return real;
  }
  throw new Refused(`${real} is neither in the worker's own folder nor in one that its project allows`);
}

async function load(wanted, folders) {
  const isPath = wanted.startsWith('.') || wanted.startsWith('/') || /\.[cm]?js$/.test(wanted);
  if (isPath) return import(pathToFileURL(allowed(wanted, folders)).href);
  let found;
  try {
    found = createRequire(`${process.cwd()}/`).resolve(wanted);
  } catch (error) {
    throw new Invalid(`there is no module ${wanted}: ${error.code ?? error.message}`);
  }
  return import(found.startsWith('/') ? pathToFileURL(found).href : found);
}

function exported(module, name) {
  const find = (from) => name.split('.').reduce((found, part) => found?.[part], from);
  const found = find(module);
  return typeof found === 'function' ? found : find(module.default);
}

serve(
  `ostler node worker (Node ${process.version})`,
  {
    // The body of an async function: `return` gives the result. It finds `args` and `require`.
    'execute-code'(payload) {
      fields(payload, { code: 'string' }, { args: 'any' });
      const code = compiled(() => new AsyncFunction('args', 'require', `${payload.code}\n//# sourceURL=task-code`));
      return code(payload.args, createRequire(`${process.cwd()}/`));
    },

    // An expression that is a function, with its arguments.
    'execute-function'(payload) {
      fields(payload, { function: 'string' }, { args: 'array' });
      const code = compiled(() => (0, eval)(`(${payload.function}\n)\n//# sourceURL=task-function`));
      if (typeof code !== 'function') throw new Invalid('the source is no function');
      return code(...(payload.args ?? []));
    },

    // A function that a file or a package exports, with its arguments.
    async 'execute-module'(payload, task) {
      fields(payload, { module: 'string' }, { function: 'string', args: 'array' });
      const name = payload.function ?? 'default';
      const module = await load(payload.module, task.folders);
      const code = exported(module, name);
      if (typeof code !== 'function') throw new Invalid(`${payload.module} exports no function ${name}`);
      return code(...(payload.args ?? []));
    },
  },
  { fresh: true },
);
