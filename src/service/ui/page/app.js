// The page: which view is shown, and the stream that keeps it live.

import { setText } from './dom.js';
import { evaluator } from './evaluator.js';
import { evaluators } from './evaluators.js';
import { overview } from './overview.js';
import { pool } from './pool.js';
import { events } from './server.js';
import { tenants } from './tenants.js';
import { catchDrops, upload } from './upload.js';

const KEPT = 600;
const main = document.getElementById('main');
const live = { samples: [], runtimes: null };
let view = null;

const VIEWS = { '': overview, evaluators, evaluator, tenants, pool, upload };

// What is no encoded text stays as it is: there is no evaluator of that name.
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// `#/evaluator/NAME?key=value`
function route() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const [name, rest] = path.split('/');
  return { name, rest: decoded(rest ?? ''), parameters: new URLSearchParams(query) };
}

function show(isFirst = false) {
  const { name, rest, parameters } = route();
  view?.leave?.();
  view = (VIEWS[name] ?? overview)({ live, name: rest, parameters });
  main.replaceChildren(view.element);
  document.title = `${view.title} · evalpool`;
  for (const link of document.querySelectorAll('nav a')) {
    const own = link.getAttribute('href').slice(2);
    if (own === (name === 'evaluator' ? 'evaluators' : name)) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  // Who reads by ear hears where they are.
  if (!isFirst) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  if (Boolean(view.wantsRuntimes) !== stream.wantsRuntimes) stream.restart();
}

function tell(isLive, text) {
  document.getElementById('connection').classList.toggle('live', isLive);
  setText(document.getElementById('connection-text'), text);
}

// Reads the stream as long as the page is seen, and again when it breaks.
const stream = {
  wantsRuntimes: false,
  stop: null,

  restart() {
    this.stop?.abort();
    this.stop = null;
    if (!document.hidden) this.run();
  },

  async run() {
    const stop = new AbortController();
    this.stop = stop;
    this.wantsRuntimes = Boolean(view?.wantsRuntimes);
    while (!stop.signal.aborted) {
      const next = (live.samples.at(-1)?.number ?? -1) + 1;
      try {
        await events(`/ui/events?from=${next}&runtimes=${this.wantsRuntimes}`, (event, data) => this.take(event, data), stop.signal);
        tell(false, 'the server has ended the stream');
      } catch (error) {
        if (stop.signal.aborted) return;
        tell(false, error.status ? error.message : 'the server does not answer');
      }
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  },

  take(event, data) {
    if (event === 'hello') {
      setText(document.getElementById('version'), data.version);
      tell(true, 'live');
    }
    if (event === 'samples') {
      // A server that was started again counts from the beginning.
      const known = live.samples.at(-1)?.number ?? -1;
      const isAnew = data[0].number <= known;
      live.samples = [...(isAnew ? [] : live.samples), ...data].slice(-KEPT);
      view?.update?.();
    }
    if (event === 'runtimes') {
      live.runtimes = data;
      view?.updateRuntimes?.();
    }
  },
};

catchDrops();
addEventListener('hashchange', () => show());
document.addEventListener('visibilitychange', () => stream.restart());
show(true);
stream.restart();
