// Every runtime as a cell: those that come and go make it flicker, which is what thrash looks like.

import { bytes, count, el, number, seconds, setText } from './dom.js';

const key = (cell) => `${cell[10]}.${cell[2]}`;

// What a cell says, as words.
const words = ([name, tenant, , state, instances, busy, uses, held, age, unused]) =>
  [name, `tenant ${tenant}`, state, busy > 0 && 'busy', `${count(instances, 'instance')}, ${number(busy)} busy`,
    count(uses, 'use'), bytes(held), age !== null && `${seconds(age)} old`, unused !== null && `unused for ${seconds(unused)}`].filter(Boolean).join(', ');

const kind = (cell) => (cell[3] !== 'live' ? cell[3] : cell[5] > 0 ? 'busy' : 'idle');

export function pool({ live }) {
  const map = el('div', { class: 'map', role: 'list', 'aria-label': 'Runtimes' });
  const told = el('p', { class: 'found' });
  const chosen = el('div', { class: 'chosen', 'aria-live': 'polite' }, el('p', { class: 'empty' }, 'Choose a cell to see what it is.'));
  const tenants = el('div');
  const legend = ['building', 'idle', 'busy', 'draining'].map((word) => el('li', {}, el('span', { class: `swatch cell ${word}`, 'aria-hidden': 'true' }), word));
  const element = el('div', {}, el('h1', {}, 'Pool'),
    el('section', { class: 'card', 'aria-labelledby': 'map-title' }, el('h2', { id: 'map-title' }, 'Runtimes'),
      el('p', { class: 'help' }, 'A cell is a runtime, as large as the memory it holds; a new one flashes. If they flash without pause, the pool thrashes: its capacity or memory is too small for what is called.'),
      el('ul', { class: 'legend' }, legend), told, map, chosen),
    el('section', { class: 'card', 'aria-labelledby': 'tenants-title' }, el('h2', { id: 'tenants-title' }, 'By tenant'), tenants));
  const cells = new Map();
  let isFirst = true;
  let choice = null;

  function make(cell) {
    const one = el('a', { class: 'cell', href: `#/evaluator/${encodeURIComponent(cell[0])}` });
    one.addEventListener('focus', () => choose(one));
    one.addEventListener('pointerenter', () => choose(one));
    if (!isFirst) {
      one.classList.add('new');
      one.addEventListener('animationend', () => one.classList.remove('new'));
    }
    return { item: el('div', { role: 'listitem' }, one), one };
  }

  function choose(one) {
    choice = one;
    tell();
  }

  function tell() {
    const found = [...cells.values()].find(({ one }) => one === choice);
    if (!found) return;
    setText(chosen, words(found.cell));
  }

  function updateRuntimes() {
    const { all, cells: given } = live.runtimes;
    const largest = Math.max(1, ...given.map((cell) => cell[7]));
    const seen = new Set();
    given.forEach((cell) => {
      const id = key(cell);
      seen.add(id);
      if (!cells.has(id)) {
        const made = make(cell);
        cells.set(id, made);
        map.append(made.item);
      }
      const known = cells.get(id);
      known.cell = cell;
      const { one } = known;
      const isNew = one.classList.contains('new');
      one.className = `cell ${kind(cell)} size-${Math.min(4, Math.ceil(4 * Math.sqrt(cell[7] / largest)))}${isNew ? ' new' : ''}`;
      if (one.dataset.words !== words(cell)) {
        one.dataset.words = words(cell);
        one.setAttribute('aria-label', `${cell[0]}, ${kind(cell)}`);
        one.title = words(cell);
      }
    });
    for (const [id, { item }] of cells) {
      if (seen.has(id)) continue;
      item.remove();
      cells.delete(id);
    }
    setText(told, all === 0 ? 'There is no runtime: all evaluators are cold.' : given.length < all ? `${number(given.length)} of ${number(all)} are shown.` : count(all, 'runtime'));
    byTenant(given);
    isFirst = false;
    tell();
  }

  function byTenant(given) {
    const sums = new Map();
    for (const [, tenant, , , instances, busy, , held, age] of given) {
      const sum = sums.get(tenant) ?? { runtimes: 0, instances: 0, busy: 0, held: 0, youngest: Infinity };
      sum.runtimes += 1;
      sum.instances += instances;
      sum.busy += busy;
      sum.held += held;
      sum.youngest = Math.min(sum.youngest, age ?? 0);
      sums.set(tenant, sum);
    }
    const built = {};
    for (const sample of live.samples.slice(-60)) for (const [tenant, count] of sample.built) built[tenant] = (built[tenant] ?? 0) + count;
    for (const tenant of Object.keys(built)) if (!sums.has(tenant)) sums.set(tenant, { runtimes: 0, instances: 0, busy: 0, held: 0, youngest: Infinity });
    const rows = [...sums].sort((a, b) => (built[b[0]] ?? 0) - (built[a[0]] ?? 0) || b[1].runtimes - a[1].runtimes).slice(0, 20);
    if (rows.length === 0) return tenants.replaceChildren(el('p', { class: 'empty' }, 'None.'));
    const heads = ['Tenant', 'New in 1 min', 'Runtimes', 'Instances', 'Busy', 'Memory', 'Youngest'];
    tenants.replaceChildren(el('div', { class: 'scroll', role: 'region', 'aria-label': 'Runtimes by tenant', tabindex: 0 }, el('table', {}, el('caption', { class: 'unseen' }, 'Runtimes by tenant'),
      el('thead', {}, el('tr', {}, heads.map((head, at) => el('th', { scope: 'col', class: at > 0 && 'figure' }, head)))),
      el('tbody', {}, rows.map(([tenant, sum]) => el('tr', {}, el('td', {}, el('a', { href: `#/evaluators?tenant=${encodeURIComponent(tenant)}` }, tenant)),
        [number(built[tenant] ?? 0), number(sum.runtimes), number(sum.instances), number(sum.busy), bytes(sum.held), sum.youngest === Infinity ? '–' : seconds(sum.youngest)]
          .map((text) => el('td', { class: 'figure' }, text))))))));
  }

  if (live.runtimes) updateRuntimes();
  return { element, title: 'Pool', updateRuntimes, wantsRuntimes: true, leave: () => { live.runtimes = null; } };
}
