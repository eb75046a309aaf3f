// The program as a process, and requests to it that are no browser's.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

export class Server {
  // With settings such as `{ POOL_CAPACITY: '8' }`.
  static async start(program, folder, settings = {}, listen = '127.0.0.1:0') {
    const environment = Object.entries(process.env).filter(([name]) => !name.startsWith('EVALPOOL_'));
    const own = Object.entries(settings).map(([name, value]) => [`EVALPOOL_${name}`, value]);
    const child = spawn(program, ['serve', '--listen', listen, '--data', join(folder, 'data')], {
      env: Object.fromEntries([...environment, ...own]), stdio: ['ignore', 'pipe', 'inherit'],
    });
    const server = new Server();
    Object.assign(server, { child, folder });
    let said = '';
    for await (const chunk of child.stdout) {
      said += chunk;
      const found = /listens on (http:\S+)/.exec(said);
      if (found) {
        server.url = found[1];
        return server;
      }
    }
    throw new Error(`the server does not start: ${said}`);
  }

  async stop() {
    const ended = once(this.child, 'exit');
    this.child.kill('SIGTERM');
    await ended;
  }

  async put(name, file, query = '') {
    const body = await readFile(file);
    const path = `/v1/evaluators/${encodeURIComponent(name)}${query}`;
    const answer = await fetch(this.url + path, { method: 'PUT', headers: { 'content-type': 'application/wasm' }, body });
    if (!answer.ok) throw new Error(`${name}: ${await answer.text()}`);
  }

  async post(name, body, headers = {}) {
    const answer = await fetch(`${this.url}/v1/evaluators/${encodeURIComponent(name)}`, { method: 'POST', body, headers });
    await answer.arrayBuffer();
  }

  async remove(name) {
    await fetch(`${this.url}/v1/evaluators/${encodeURIComponent(name)}`, { method: 'DELETE' });
  }

  async get(name) {
    return (await fetch(`${this.url}/v1/evaluators/${encodeURIComponent(name)}`)).json();
  }

  // Stores the evaluator `like` once more under each of these names. The server must not run.
  async store(like, names) {
    const folder = join(this.folder, 'data', 'evaluators');
    const files = await readdir(folder);
    const record = JSON.parse(await readFile(join(folder, files.find((file) => file === `${like.replaceAll('/', '+')}.json`)), 'utf8'));
    for (const name of names) await writeFile(join(folder, `${name.replaceAll('/', '+')}.json`), JSON.stringify({ ...record, name }), { mode: 0o600 });
  }
}
