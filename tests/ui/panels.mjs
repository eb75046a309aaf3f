// Pictures of the dashboards: node panels.mjs PROGRAM FOLDER PACKAGES SECONDS. `panels` installs what this needs.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as passed } from 'node:timers/promises';

import { chromium } from 'playwright-core';

import { Server } from './server.mjs';

const [program, pictures, packages, seconds] = process.argv.slice(2);
const { build } = createRequire(join(packages, 'package.json'))('esbuild');
const tree = (path) => new URL(`../../${path}`, import.meta.url).pathname;
const [CRASH, TEXT] = ['crash', 'text'].map((name) => tree(`tests/plugins/c/${name}.wasm`));
const folder = await mkdtemp(join(tmpdir(), 'evalpool-panels-'));
const STEP = 5;

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  return port;
}

// The file of the repository, with this server and shorter pauses.
async function prometheus(server, port) {
  const config = (await readFile(tree('config/prometheus.yml'), 'utf8')).replace(/(scrape|evaluation)_interval: .*/g, '$1_interval: 2s')
    .replace(/targets: .*/, `targets: ["${new URL(server.url).host}"]`).replace(/- (rules|alerts)\.yml/g, (_, name) => `- ${tree(`config/${name}.yml`)}`);
  await writeFile(join(folder, 'prometheus.yml'), config);
  const flags = [`--config.file=${folder}/prometheus.yml`, `--storage.tsdb.path=${folder}/series`, `--web.listen-address=127.0.0.1:${port}`, '--log.level=error'];
  return spawn('prometheus', flags, { stdio: ['ignore', 'inherit', 'inherit'] });
}

// More evaluators than places, some called more often; one that fails; one that is uploaded again and again.
async function load(server) {
  const names = Array.from({ length: 16 }, (_, at) => `tenant-${at % 4}/text-${at >> 2}`);
  for (const name of names) await server.put(name, TEXT, '?entry_point=upper');
  await server.put('bad/crash', CRASH, '?entry_point=crash');
  const end = Date.now() + 1000 * seconds;
  for (let call = 0; Date.now() < end; call += 1) {
    const calls = [server.post(names[Math.floor(names.length * Math.random() ** 2)], 'hello')];
    if (call % 7 === 0) calls.push(server.post('bad/crash', '1'));
    if (call % 500 === 0) calls.push(server.put(names[0], TEXT, '?entry_point=upper'));
    await Promise.all(calls);
    await passed(20);
  }
}

// What each panel asks for, with Grafana's variables replaced.
async function asked(port, panel, [start, end]) {
  return Promise.all((panel.targets ?? []).map(async ({ refId, expr, instant, legendFormat }) => {
    const query = expr.replaceAll('$__rate_interval', '20s').replaceAll('$__range', `${end - start}s`).replaceAll('$__interval', `${STEP}s`).replace(/\$\{?(job|instance)\}?/g, '.*');
    const parameters = new URLSearchParams(instant ? { query, time: end } : { query, start, end, step: STEP });
    const { error, data } = await (await fetch(`http://127.0.0.1:${port}/api/v1/${instant ? 'query' : 'query_range'}?${parameters}`)).json();
    if (error) throw new Error(`${panel.title}: ${error}`);
    return { refId, legend: legendFormat, series: data.result };
  }));
}

async function bundle(data) {
  await build({
    entryPoints: [new URL('panels.jsx', import.meta.url).pathname], bundle: true, outfile: join(folder, 'panels.js'), logLevel: 'error',
    nodePaths: [join(packages, 'node_modules')], define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
    loader: Object.fromEntries(['svg', 'png', 'gif', 'woff', 'woff2', 'ttf'].map((kind) => [`.${kind}`, 'dataurl'])),
  });
  await writeFile(join(folder, 'data.js'), `window.DATA = ${JSON.stringify(data)};`);
  await writeFile(join(folder, 'index.html'), `<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="panels.css">
    <style>* { box-sizing: border-box } body { margin: 0 } button { background: none; border: 0; color: inherit; font: inherit } table { border-collapse: collapse; font-size: 12px }</style>
    <div id="root"></div><script src="data.js"></script><script src="panels.js"></script>`);
}

async function draw(dashboards) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu'] });
  for (const [at, { name }] of dashboards.entries()) {
    for (const mode of ['dark', 'light']) {
      const page = await browser.newPage({ viewport: { width: 1500, height: 900 } });
      page.on('pageerror', (error) => console.error(`${name}: ${error}`));
      // However busy the machine is.
      page.setDefaultTimeout(300_000);
      await page.goto(`file://${folder}/index.html?dashboard=${at}&mode=${mode}`);
      await page.locator('.panel').first().waitFor();
      // Charts are drawn in frames of their own.
      await page.evaluate(() => new Promise((resolve) => { requestIdleCallback(resolve); }));
      await page.screenshot({ path: join(pictures, `${name}-${mode}.png`), fullPage: true });
      if (mode === 'light') continue;
      await mkdir(join(pictures, name), { recursive: true });
      for (const panel of await page.locator('.panel').all()) {
        const title = (await panel.getAttribute('title')).toLowerCase().replace(/[^a-z0-9]+/g, '-');
        await panel.screenshot({ path: join(pictures, name, `${title}.png`) });
      }
    }
  }
  await browser.close();
}

const settings = { POOL_CAPACITY: '8', METRICS_PER_TENANT: '5', METRICS_PER_EVALUATOR: '10', LOG_LEVEL: 'error' };
const server = await Server.start(program, folder, settings);
const port = await freePort();
const scraping = await prometheus(server, port);
try {
  const start = Math.floor(Date.now() / 1000);
  await load(server);
  const time = [start, Math.floor(Date.now() / 1000)];
  const dashboards = [];
  for (const file of (await readdir(tree('dashboards'))).filter((it) => it.endsWith('.json'))) {
    const { panels } = JSON.parse(await readFile(tree(`dashboards/${file}`), 'utf8'));
    for (const panel of panels) panel.results = await asked(port, panel, time);
    dashboards.push({ name: file.replace('.json', ''), panels });
  }
  await bundle({ time, step: STEP, dashboards });
  await draw(dashboards);
  console.log(`look at ${pictures}`);
} finally {
  scraping.kill('SIGKILL');
  server.child.kill('SIGKILL');
  await rm(folder, { recursive: true, force: true });
}
