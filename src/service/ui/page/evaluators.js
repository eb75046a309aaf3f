// Evaluators: looked through, sorted and cut by the server.

import { ago, bytes, debounce, el, number, seconds, setText } from './dom.js';
import { get } from './server.js';

const ROWS = 50;
// How often a list that is looked at is fetched again, in milliseconds, unless a search takes a tenth of that.
const AGAIN = 3000;

const evaluatorColumns = [
  { sort: 'name', head: 'Name', cell: (it) => el('a', { href: `#/evaluator/${encodeURIComponent(it.name)}` }, it.name) },
  { sort: 'tenant', head: 'Tenant', style: 'wide', cell: (it) => it.tenant },
  { sort: 'state', head: 'State', cell: (it) => el('span', { class: `state ${it.state}` }, it.state) },
  { sort: 'instances', head: 'Instances', figure: true, cell: (it) => number(it.instances) },
  { sort: 'evaluations', head: 'Calls', figure: true, cell: (it) => number(it.evaluations) },
  { sort: 'errors', head: 'Errors', figure: true, cell: (it) => (it.errors > 0 ? el('span', { class: 'bad' }, number(it.errors)) : '0') },
  { sort: 'mean', head: 'Mean time', figure: true, cell: (it) => seconds(it.mean_seconds) },
  { sort: 'p99', head: 'p99', figure: true, cell: (it) => seconds(it.p99_seconds) },
  { sort: 'guest', head: 'Guest time', figure: true, cell: (it) => seconds(it.guest_seconds) },
  { sort: 'memory', head: 'Memory', figure: true, cell: (it) => (it.memory_bytes > 0 ? bytes(it.memory_bytes) : '–') },
  { sort: 'last_used', head: 'Last call', figure: true, cell: (it) => ago(it.last_used) },
];

// A list that the server searches, sorts and cuts. What is asked for stands in the address.
export function list({ title, path, columns, parameters, route, filters = [], label, least }) {
  const asked = {
    q: parameters.get('q') ?? '', sort: parameters.get('sort') ?? least.sort,
    descending: (parameters.get('descending') ?? String(least.descending)) === 'true',
    page: Number(parameters.get('page') ?? 0) || 0,
  };
  for (const { name } of filters) asked[name] = parameters.get(name) ?? '';
  const body = el('tbody');
  const status = el('p', { class: 'found', role: 'status' });
  const error = el('p', { class: 'error', role: 'alert' });
  const heads = columns.map((column) => el('th', { scope: 'col', class: column.figure ? 'figure' : column.style },
    column.sort ? el('button', { type: 'button', class: 'sort', onclick: () => sortBy(column.sort) }, column.head) : column.head));
  const [back, forth] = [['Previous', -1], ['Next', 1]].map(([text, step]) => el('button', { type: 'button', onclick: () => turn(step) }, text));
  const search = el('input', { id: 'search', type: 'search', value: asked.q, autocomplete: 'off', spellcheck: 'false',
    oninput: debounce(() => change({ q: search.value, page: 0 })) });
  const controls = filters.map((filter) => filter.control(asked[filter.name], (value) => change({ [filter.name]: value, page: 0 })));
  const element = el('div', {}, el('h1', {}, title),
    el('form', { class: 'search', role: 'search', onsubmit: (event) => event.preventDefault() },
      el('p', {}, el('label', { for: 'search' }, label), search), controls),
    error,
    el('div', { class: 'scroll', role: 'region', 'aria-label': title, tabindex: 0 },
      el('table', {}, el('caption', { class: 'unseen' }, title), el('thead', {}, el('tr', {}, heads)), body)),
    el('div', { class: 'pages' }, status, el('div', {}, back, ' ', forth)));
  let stop = new AbortController();
  let timer = null;
  let isLeft = false;

  function change(what) {
    Object.assign(asked, what);
    const query = new URLSearchParams(Object.entries(asked).filter(([name, value]) => value !== '' && value !== (least[name] ?? (name === 'page' ? 0 : '')))).toString();
    history.replaceState(null, '', query ? `#/${route}?${query}` : `#/${route}`);
    load();
  }

  function sortBy(sort) {
    const column = columns.find((one) => one.sort === sort);
    change({ sort, descending: asked.sort === sort ? !asked.descending : Boolean(column.figure), page: 0 });
  }

  function turn(step) {
    change({ page: asked.page + step });
  }

  async function load() {
    stop.abort();
    clearTimeout(timer);
    stop = new AbortController();
    const own = stop;
    const began = performance.now();
    try {
      const found = await get(path, { ...asked, limit: ROWS }, own.signal);
      if (own.signal.aborted) return;
      show(found);
      setText(error, '');
    } catch (problem) {
      if (own.signal.aborted) return;
      setText(error, problem.message);
    }
    if (!isLeft) timer = setTimeout(() => (document.hidden ? wait() : load()), Math.max(AGAIN, 10 * (performance.now() - began)));
  }

  function wait() {
    document.addEventListener('visibilitychange', () => !isLeft && load(), { once: true });
  }

  function show({ rows, found }) {
    heads.forEach((head, at) => {
      const isSorted = columns[at].sort === asked.sort;
      if (isSorted) head.setAttribute('aria-sort', asked.descending ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    });
    // The link that has the focus keeps it when the rows are new.
    const focused = body.contains(document.activeElement) ? document.activeElement.textContent : null;
    body.replaceChildren(...rows.map((row) => el('tr', {}, columns.map((column) => el('td', { class: column.figure ? 'figure' : column.style }, column.cell(row))))));
    if (focused !== null) [...body.querySelectorAll('a')].find((link) => link.textContent === focused)?.focus();
    const first = asked.page * ROWS + 1;
    setText(status, found === 0 ? 'Nothing found.' : rows.length === 0 ? `${number(found)} found.` : `${number(first)} to ${number(first + rows.length - 1)} of ${number(found)}`);
    back.disabled = asked.page === 0;
    forth.disabled = first + rows.length > found;
  }

  load();
  return { element, title, leave: () => { isLeft = true; stop.abort(); clearTimeout(timer); } };
}

export function evaluators({ parameters }) {
  const state = (value, choose) => {
    const select = el('select', { id: 'state', onchange: () => choose(select.value) },
      ['', 'live', 'building', 'draining', 'cold'].map((word) => el('option', { value: word, selected: word === value }, word || 'any')));
    return el('p', {}, el('label', { for: 'state' }, 'State'), select);
  };
  const tenant = (value, choose) => {
    const input = el('input', { id: 'tenant', value, autocomplete: 'off', spellcheck: 'false', oninput: debounce(() => choose(input.value)) });
    return el('p', {}, el('label', { for: 'tenant' }, 'Tenant'), input);
  };
  return list({
    title: 'Evaluators', path: '/ui/evaluators', columns: evaluatorColumns, parameters, route: 'evaluators', label: 'Search names',
    filters: [{ name: 'tenant', control: tenant }, { name: 'state', control: state }], least: { sort: 'name', descending: false },
  });
}
