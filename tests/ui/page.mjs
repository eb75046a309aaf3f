// The page in a real browser: node page.mjs PROGRAM [FOLDER FOR SCREENSHOTS].

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

import { chromium } from 'playwright-core';

import { Server } from './server.mjs';

const [program, screenshots] = process.argv.slice(2);
const plugin = (name) => new URL(`../plugins/${name}`, import.meta.url).pathname;
const [CRASH, TEXT, SAYS] = [plugin('c/crash.wasm'), plugin('c/text.wasm'), plugin('rust/totals.wasm')];
const AXE = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
// Short enough for the message of the plugin that crashes.
const HOSTILE = '<img src=x onerror="hacked=1"><b>x</b>';
// Far longer than anything here takes, however busy the machine is.
const PATIENCE = Number(process.env.PATIENCE ?? 60_000);

const folder = await mkdtemp(join(tmpdir(), 'evalpool-ui-'));
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu', '--host-resolver-rules=MAP evil.test 127.0.0.1'] });
const wrong = [];

// A page in which nothing may go wrong: no error, no request to elsewhere, nothing that the policy forbids.
async function open(server, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  // While one writes the page: its files as they are in the tree, without a build.
  if (process.env.PAGE_OF_THE_TREE) {
    await page.route(/\/(ui\/[a-z]+\.(js|css))?$/, async (route) => {
      const name = new URL(route.request().url()).pathname.replace(/^\/(ui\/)?/, '') || 'index.html';
      const response = await route.fetch();
      await route.fulfill({ response, body: await readFile(new URL(`../../src/service/ui/page/${name}`, import.meta.url)) });
    });
  }
  page.on('pageerror', (error) => wrong.push(`an error in the page: ${error.stack}`));
  page.on('console', (message) => {
    // A refused call, and a server that is away, are shown there by the browser itself.
    const isExpected = message.text().startsWith('Failed to load resource');
    if (message.type() === 'error' && !isExpected) wrong.push(`the browser says: ${message.text()}`);
  });
  page.on('request', (request) => {
    if (!/^data:/.test(request.url()) && new URL(request.url()).origin !== server.url) wrong.push(`a request to ${request.url()}`);
  });
  return page;
}

const see = (page, text, within = 'main') => page.locator(within).getByText(text, { exact: false }).first().waitFor();

async function go(page, server, hash) {
  await page.goto(`${server.url}/${hash}`);
  await page.locator('main h1').waitFor();
}

// Everything of the page is a promise to whoever uses it by ear or by keyboard.
async function isAccessible(page, where) {
  // Run where the policy of the page does not reach.
  const session = await page.context().newCDPSession(page);
  const { frameTree } = await session.send('Page.getFrameTree');
  const { executionContextId } = await session.send('Page.createIsolatedWorld', { frameId: frameTree.frame.id, worldName: 'axe' });
  const run = async (expression) => {
    const { result, exceptionDetails } = await session.send('Runtime.evaluate', { expression, contextId: executionContextId, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  await run(`${AXE}; undefined`);
  const found = await run(`axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
    violations.filter((it) => it.impact === 'serious' || it.impact === 'critical' || it.impact === 'moderate')
      .map((it) => it.id + ': ' + it.nodes.map((node) => node.html + ' ' + node.failureSummary).slice(0, 3).join(' | ')))`);
  assert.deepEqual(found, [], `${where}: what axe found`);
  await session.detach();
}

// Nothing is wider than the window, but what scrolls by itself.
async function fits(page, where) {
  const [width, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(width <= window, `${where}: ${width} px in a window of ${window}`);
}

// The overview shows what came: each second it draws its charts anew.
const redrawn = (page) => page.evaluate((patience) => new Promise((resolve, reject) => {
  const seen = new MutationObserver(() => resolve(seen.disconnect()));
  seen.observe(document.querySelector('main'), { subtree: true, childList: true, attributes: true });
  setTimeout(() => reject(new Error('the overview is not live')), patience);
}), PATIENCE);

async function shoot(page, name) {
  if (screenshots) await page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true });
}

const LOOKS = [
  ['light', {}], ['dark', { colorScheme: 'dark' }],
  ['phone', { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true }],
];

const steps = [];
const step = (title, run) => steps.push([title, run]);

step('a plugin is uploaded, called, and its answer, timings and usage are seen', async ({ page, server }) => {
  await go(page, server, '#/upload');
  await page.getByRole('button', { name: 'Upload' }).click();
  await see(page, 'Choose a file first');
  await page.locator('#file').setInputFiles(TEXT);
  assert.equal(await page.locator('#name').inputValue(), 'text');
  await page.locator('#name').fill('shop/text');
  await page.locator('#upload-entry').fill('upper');
  await page.locator('#debug').check();
  await page.getByRole('button', { name: 'Upload' }).click();
  await see(page, 'A new evaluator');
  await isAccessible(page, 'upload');
  await page.getByRole('link', { name: 'shop/text' }).click();
  await page.locator('#input').fill('hello');
  await page.locator('#input').press('Control+Enter');
  await page.locator('.output', { hasText: 'HELLO' }).waitFor();
  await see(page, 'exec', '.answer');
  await see(page, 'Peak memory', '.answer');
  await see(page, '"entry_point": "upper"');
});

step('a bad plugin is refused with the reason', async ({ page, server }) => {
  await writeFile(join(folder, 'bad.wasm'), 'not a plugin');
  await go(page, server, '#/upload');
  await page.locator('#file').setInputFiles(join(folder, 'bad.wasm'));
  await page.getByRole('button', { name: 'Upload' }).click();
  await see(page, 'invalid_plugin');
});

step('a file that is dropped on any view is what will be uploaded', async ({ page, server }) => {
  await go(page, server, '#/evaluators');
  await page.evaluate(() => {
    const data = new DataTransfer();
    data.items.add(new File(['x'], 'drop ped.wasm'));
    for (const type of ['dragenter', 'drop']) document.body.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
  });
  await see(page, 'drop ped.wasm');
  assert.equal(await page.locator('#name').inputValue(), 'drop-ped');
  assert.equal(await page.locator('#drop-hint').isVisible(), false);
});

step("a trap's stack and what was written are seen, as soon as debug is on", async ({ page, server }) => {
  await server.put('shop/crash', CRASH, '?entry_point=crash');
  await go(page, server, '#/evaluator/shop%2Fcrash');
  await page.locator('#input').fill(HOSTILE);
  await page.getByRole('button', { name: 'Call' }).click();
  await see(page, 'guest_trap', '.answer');
  assert.equal(await page.locator('main').getByText('give_up').count(), 0);
  await page.getByRole('button', { name: 'Turn debug on' }).click();
  await see(page, 'Failures from now on');
  await page.getByRole('button', { name: 'Call' }).click();
  for (const within of ['.answer', '.failures']) {
    await see(page, 'give_up', within);
    await see(page, `no such order: ${HOSTILE}`, within);
  }
  await see(page, 'p99', '.facts');
  await isAccessible(page, 'evaluator');
  await shoot(page, 'evaluator-light');
});

step('a slow or failed call leads to its trace, which learns nothing of the page', async ({ page, server, traces }) => {
  const [sent, unsent] = ['0af7651916cd43dd8448eb211c80319c', '1bf7651916cd43dd8448eb211c80319d'];
  await server.put('other/traced', CRASH, '?entry_point=crash');
  for (const [id, flags] of [[unsent, '00'], [sent, '01']]) {
    // Failures of one kind within a second are told of together.
    if (id === sent) await server.put('other/traced', TEXT, '?entry_point=upper');
    await server.post('other/traced', HOSTILE, { traceparent: `00-${id}-b7ad6b7169203331-${flags}` });
  }
  await go(page, server, '#/evaluator/other%2Ftraced');
  await page.locator('.failures:not(.slowest) .trace', { hasText: unsent }).waitFor();
  await page.locator('.slowest .trace', { hasText: unsent }).waitFor();
  assert.equal(await page.locator('main a', { hasText: unsent }).count(), 0);
  const link = page.locator('.slowest').getByRole('link', { name: sent });
  assert.equal(await link.getAttribute('href'), `${traces}/trace/${sent}`);
  await see(page, 'ran', '.slowest');
  await isAccessible(page, 'slowest');
  await shoot(page, 'slowest-light');
  const [opened] = await Promise.all([page.context().waitForEvent('page'), link.click()]);
  await opened.waitForURL(`${traces}/trace/${sent}`);
  assert.deepEqual(await opened.evaluate(() => [document.referrer, window.opener]), ['', null]);
  await opened.close();
  await server.remove('other/traced');
});

step('what a plugin says is seen as it says it, as text', async ({ page, server }) => {
  await server.put('shop/says', SAYS, '?entry_point=log_it&debug=true');
  await go(page, server, '#/evaluator/shop%2Fsays');
  await see(page, 'Nothing yet');
  await server.post('shop/says', HOSTILE);
  await page.locator('.lines li', { hasText: HOSTILE }).waitFor();
  assert.equal(await page.locator('.lines code').first().innerText(), 'info');
  for (let call = 0; call < 60; call += 1) await server.post('shop/says', `line ${call}`);
  await page.locator('.lines li', { hasText: 'line 59' }).waitFor();
  assert.ok(await page.locator('.lines').evaluate((it) => it.scrollTop + it.clientHeight >= it.scrollHeight - 4), 'the end is seen');
  assert.equal(await page.locator('main img').count(), 0);
  await isAccessible(page, 'lines');
  await shoot(page, 'lines-light');
  await go(page, server, '#/evaluator/greet');
  await see(page, 'Lines are kept while its debug is on.');
});

step('what an output, an error or an address says is text and never markup', async ({ page, server }) => {
  await go(page, server, '#/evaluator/shop%2Ftext');
  await page.locator('#input').fill(HOSTILE);
  await page.getByRole('button', { name: 'Call' }).click();
  await page.locator('.output', { hasText: HOSTILE.toUpperCase() }).waitFor();
  await go(page, server, `#/evaluator/${encodeURIComponent(HOSTILE)}`);
  await see(page, HOSTILE, 'h1');
  await see(page, 'invalid_name');
  await go(page, server, `#/evaluators?q=${encodeURIComponent(HOSTILE)}&tenant=${encodeURIComponent(HOSTILE)}`);
  await see(page, 'Nothing found');
  await go(page, server, '#/evaluator/shop%2Fcrash');
  await see(page, HOSTILE, '.failures');
  assert.equal(await page.locator('main img, main script').count(), 0);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
});

step('ten thousand evaluators are searched, sorted and paged', async ({ page, server }) => {
  await go(page, server, '#/evaluators');
  await see(page, '1 to 50 of 10,004');
  await page.getByRole('button', { name: 'Next' }).click();
  await see(page, '51 to 100 of 10,004');
  await page.getByLabel('Search names').fill('NUMBER-7777');
  await see(page, '1 to 1 of 1');
  await page.getByRole('link', { name: 'many-7/number-7777' }).waitFor();
  await page.getByLabel('Search names').fill('');
  await see(page, '1 to 50 of 10,004');
  await page.getByRole('button', { name: 'Calls' }).click();
  await page.locator('tbody tr').first().getByText('shop/').waitFor();
  assert.equal(await page.locator('th[aria-sort=descending]').innerText(), 'Calls ↓'.replace(' ↓', ''));
  await page.getByLabel('State').selectOption('cold');
  await page.getByLabel('Tenant').fill('many-3');
  await see(page, '1 to 50 of 1,000');
  const before = Date.now();
  await page.getByRole('button', { name: 'Guest time' }).click();
  await page.locator('th[aria-sort=descending]', { hasText: 'Guest time' }).waitFor();
  console.log(`   sorted in ${Date.now() - before} ms`);
  await isAccessible(page, 'evaluators');
  await page.reload();
  await see(page, '1 to 50 of 1,000');
});

step('the overview is live, and tells what changed and for whom the pool builds', async ({ page, server, load }) => {
  await go(page, server, '#/');
  await page.locator('#connection.live').waitFor();
  await load(page);
  for (const text of ['guest_trap', 'shop/crash', 'many-1']) await see(page, text);
  await page.waitForFunction(() => !document.querySelector('.tile .big').textContent.startsWith('–'));
  await page.locator('svg polygon.c1').first().hover({ position: { x: 5, y: 5 }, force: true }).catch(() => {});
  await isAccessible(page, 'overview');
  await fits(page, 'overview');
  await page.mouse.move(0, 0);
  await shoot(page, 'overview-light');
});

step('the pool is a map of its runtimes', async ({ page, server }) => {
  await go(page, server, '#/pool');
  await see(page, 'runtimes');
  await page.locator('.map .cell').first().focus();
  await see(page, 'tenant', '.chosen');
  await isAccessible(page, 'pool');
  await shoot(page, 'pool-light');
});

step('tenants show what they used, may have and were refused', async ({ page, server }) => {
  await go(page, server, '#/tenants');
  await page.getByRole('link', { name: 'shop', exact: true }).waitFor();
  await isAccessible(page, 'tenants');
  await shoot(page, 'tenants-light');
  await page.getByRole('link', { name: 'shop', exact: true }).click();
  await see(page, '1 to 3 of 3');
  await shoot(page, 'evaluators-light');
});

step('it is used by keyboard alone', async ({ page, server }) => {
  // Only another address loads anew, and begins at the top.
  await page.goto('about:blank');
  await go(page, server, '#/');
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.className), 'skip');
  for (let at = 0; at < 3; at += 1) await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { name: 'Tenants' }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
});

step('in the dark and on a phone nothing is cut off or unreadable', async ({ server, load }) => {
  for (const [name, options] of LOOKS.slice(1)) {
    const page = await open(server, options);
    for (const [view, hash] of [['overview', '#/'], ['evaluators', '#/evaluators?sort=evaluations&descending=true'], ['evaluator', '#/evaluator/shop%2Fcrash'], ['lines', '#/evaluator/shop%2Fsays'], ['tenants', '#/tenants'], ['pool', '#/pool'], ['upload', '#/upload']]) {
      await go(page, server, hash);
      if (view === 'overview') await load(page);
      if (view === 'evaluators' || view === 'tenants') await page.locator('tbody td').first().waitFor();
      if (view === 'lines') await page.locator('.lines li', { hasText: 'line 59' }).waitFor();
      if (view === 'evaluator') await see(page, 'give_up', '.failures');
      if (view === 'pool') await page.locator('.map .cell').first().waitFor();
      await fits(page, `${view} ${name}`);
      await isAccessible(page, `${view} ${name}`);
      await shoot(page, `${view}-${name}`);
    }
    await page.context().close();
  }
});

// Called without pause: more evaluators of one tenant than there are places, one that always fails, and one that fails since
// its last upload.
step("a newcomer's questions are answered where the README says", async () => {
  const small = await Server.start(program, join(folder, 'small'), { POOL_CAPACITY: '8', LOG_LEVEL: 'error' });
  const jobs = Array.from({ length: 12 }, (_, at) => `acme/job-${at}`);
  for (const name of [...jobs, 'calm/price']) await small.put(name, TEXT, '?entry_point=upper');
  await small.put('shop/orders', CRASH, '?entry_point=crash');
  let isOver = false;
  const calls = (async () => {
    for (let call = 0; !isOver; call += 1) {
      await Promise.all([small.post(jobs[call % jobs.length], 'hi'), small.post('shop/orders', String(call)), call % 4 === 0 && small.post('calm/price', 'hi'), pause(20)]);
    }
  })();
  for (let call = 0; call < 20; call += 1) await small.post('calm/price', 'hi');
  await small.put('calm/price', CRASH, '?entry_point=crash');
  for (const [name, options] of LOOKS) {
    const page = await open(small, options);
    await go(page, small, '#/');
    await page.getByRole('table', { name: 'New runtimes by tenant' }).locator('tbody tr').first().getByText('acme').waitFor();
    if (screenshots) for (let second = 0; second < 10; second += 1) await redrawn(page);
    await shoot(page, `question-thrash-${name}`);
    await page.locator('nav').getByRole('link', { name: 'Evaluators' }).click();
    await page.getByRole('button', { name: 'Errors' }).click();
    await page.locator('tbody tr').first().getByRole('link', { name: 'shop/orders' }).click();
    await see(page, 'guest_trap', '.failures');
    if (name === 'light') await page.getByRole('button', { name: 'Turn debug on' }).click();
    await see(page, 'give_up', '.failures');
    await shoot(page, `question-fails-${name}`);
    await page.locator('nav').getByRole('link', { name: 'Overview' }).click();
    const change = page.locator('.changes li', { hasText: 'calm/price replaced' });
    await change.getByRole('link').click();
    await see(page, 'guest_trap', '.failures');
    await shoot(page, `question-upload-${name}`);
    await page.context().close();
  }
  isOver = true;
  await calls;
  await small.stop();
});

step('a server that starts again is found again', async ({ page, server, again }) => {
  await go(page, server, '#/');
  await page.locator('#connection.live').waitFor();
  await server.stop();
  await page.locator('#connection:not(.live)').waitFor();
  await again();
  await page.locator('#connection.live').waitFor();
});

step("another site's page cannot use the server, by its address or by a name of its own", async ({ server }) => {
  const elsewhere = createServer((_, response) => response.end('<!doctype html><title>x</title>')).listen(0, '127.0.0.1');
  await once(elsewhere, 'listening');
  const page = await (await browser.newContext()).newPage();
  const called = async () => (await server.get('greet')).evaluations;
  const before = await called();
  for (const host of ['localhost', 'evil.test']) {
    await page.goto(`http://${host}:${elsewhere.address().port}/`);
    const answers = await page.evaluate(async (url) => {
      const send = (method, mode) => fetch(url, { method, mode, body: method === 'GET' ? undefined : '{}' }).then((answer) => answer.type, () => 'none');
      return [await send('POST', 'no-cors'), await send('POST', 'cors'), await send('DELETE', 'cors'), await send('GET', 'cors')];
    }, `${server.url}/v1/evaluators/greet`);
    // What is opaque may have been an answer of any kind.
    assert.deepEqual(answers, ['opaque', 'none', 'none', 'none']);
    // A form goes there with the whole page.
    const [sent] = await Promise.all([page.waitForResponse('**/greet'), page.waitForURL('**/greet'), page.evaluate((url) => {
      const form = Object.assign(document.createElement('form'), { method: 'post', enctype: 'text/plain', action: url });
      document.body.append(form);
      form.submit();
    }, `${server.url}/v1/evaluators/greet`)]);
    assert.equal(sent.status(), 403);
  }
  assert.equal(await called(), before);
  const { port } = new URL(server.url);
  assert.equal((await page.goto(`http://evil.test:${port}/`)).status(), 421);
  const link = `http://localhost:${port}/`;
  await page.goto(`http://evil.test:${elsewhere.address().port}/`);
  const [visit] = await Promise.all([page.waitForResponse(link), page.evaluate((to) => { location.href = to; }, link)]);
  assert.equal(visit.status(), 200);
  await page.context().close();
  elsewhere.close();
});

step('where a token is wanted it is asked for, and kept in the tab', async () => {
  await writeFile(join(folder, 'tokens'), 'sesame\n');
  const guarded = await Server.start(program, join(folder, 'guarded'), { SERVICE_TOKEN_FILE: join(folder, 'tokens') });
  const page = await open(guarded);
  await page.goto(`${guarded.url}/#/evaluators`);
  await page.locator('#token-value').fill('wrong');
  await isAccessible(page, 'token');
  await page.keyboard.press('Enter');
  await see(page, 'does not take this token', '#token');
  await page.locator('#token-value').fill('sesame');
  await page.keyboard.press('Enter');
  await see(page, '1 to 1 of 1');
  await page.locator('#connection.live').waitFor();
  await page.reload();
  await see(page, '1 to 1 of 1');
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0);
  await guarded.stop();
});

// Where traces are looked at.
const traced = createServer((_, response) => response.end('<!doctype html><title>a trace</title>')).listen(0, '127.0.0.1');
await once(traced, 'listening');
const traces = `http://127.0.0.1:${traced.address().port}`;
const settings = { POOL_CAPACITY: '24', LOG_LEVEL: 'warn', TELEMETRY_TRACE_URL: `${traces}/trace/{trace_id}` };
let server;
try {
  server = await Server.start(program, folder, settings);
  await server.put('many-0/seed', TEXT, '?entry_point=upper');
  await server.stop();
  await server.store('many-0/seed', Array.from({ length: 9999 }, (_, at) => `many-${at % 10}/number-${at}`));
  server = await Server.start(program, folder, settings);
  const page = await open(server);
  // Some seconds of calls: of one tenant's more than there are places, of one that fails, of one that is right.
  const load = async (at) => {
    for (let second = 0; second < (screenshots ? 8 : 3); second += 1) {
      for (let call = 0; call < 30; call += 1) {
        await Promise.all([server.post(`many-1/number-${10 * ((second * 30 + call) % 60) + 1}`, 'x'), server.post('greet', '{"name":"Ada"}')]);
        if (call % 10 === 0) await server.post('shop/crash', String(call));
      }
      await redrawn(at);
    }
  };
  const again = async () => {
    const { port } = new URL(server.url);
    server = await Server.start(program, folder, settings, `127.0.0.1:${port}`);
  };
  for (const [title, run] of steps) {
    const began = Date.now();
    await run({ page, server, load, again, traces });
    assert.deepEqual(wrong, [], title);
    console.log(`ok ${title} (${Date.now() - began} ms)`);
  }
} catch (error) {
  console.error(error, wrong);
  process.exitCode = 1;
} finally {
  await browser.close();
  server?.child.kill('SIGKILL');
  traced.close();
  await rm(folder, { recursive: true, force: true });
}
