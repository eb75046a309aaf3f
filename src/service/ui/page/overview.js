// The last ten minutes at a glance.

import { Chart, above } from './charts.js';
import { bytes, clock, el, number, seconds, setText } from './dom.js';

const sum = (counts, ...words) => words.reduce((all, word) => all + (counts[word] ?? 0), 0);
const all = (counts) => Object.values(counts).reduce((before, count) => before + count, 0);

// Outcomes by whom they concern, so that there are few colours.
const WAITED = ['saturated', 'wait_timeout', 'quota_exceeded', 'overloaded', 'shutting_down'];

// Answers by the words of the metrics, most frequent first.
function totals(samples, field) {
  const counts = {};
  for (const sample of samples) for (const [word, count] of Object.entries(sample[field])) counts[word] = (counts[word] ?? 0) + count;
  return Object.entries(counts).sort((a, b) => b[1] - a[1]);
}

// A bound that reads well in binary units.
function aboveInBytes(value) {
  const unit = 1024 ** Math.floor(Math.log2(Math.max(1, value)) / 10);
  return above(value / unit) * unit;
}

function table(caption, heads, rows, empty) {
  if (rows.length === 0) return el('p', { class: 'empty' }, empty);
  return el('table', {}, el('caption', { class: 'unseen' }, caption),
    el('thead', {}, el('tr', {}, heads.map((head, at) => el('th', { scope: 'col', class: at > 0 && 'figure' }, head)))),
    el('tbody', {}, rows.map((row) => el('tr', {}, row.map((cell, at) => el('td', { class: at > 0 && 'figure' }, cell))))));
}

export function overview({ live }) {
  const tile = (label) => {
    const [value, note] = [el('p', { class: 'big' }, '–'), el('p', { class: 'note' })];
    return { value, note, element: el('section', { class: 'card tile' }, el('h2', {}, label), value, note) };
  };
  const tiles = ['Evaluations', 'Errors', 'Run time', 'Wait', 'Runtimes', 'Memory'].map(tile);
  const charts = [
    new Chart({
      title: 'Evaluations a second', format: number, stacked: true,
      series: [
        { label: 'ok', class: 'c1', of: (it) => sum(it.evaluations, 'ok') },
        { label: 'refused', class: 'c3', of: (it) => sum(it.evaluations, ...WAITED) },
        { label: 'failed', class: 'c2', of: (it) => all(it.evaluations) - sum(it.evaluations, 'ok', ...WAITED) },
      ],
    }),
    new Chart({
      title: 'Run time', format: seconds,
      series: [
        { label: 'p50', class: 'c1', of: (it) => it.exec?.[0] ?? null },
        { label: 'p99', class: 'c4', of: (it) => it.exec?.[1] ?? null },
      ],
    }),
    new Chart({
      title: 'Wait', format: seconds, help: 'For a runtime and an instance, before the guest runs.',
      series: [
        { label: 'p50', class: 'c1', of: (it) => it.wait?.[0] ?? null },
        { label: 'p99', class: 'c4', of: (it) => it.wait?.[1] ?? null },
      ],
    }),
    new Chart({
      title: 'Runtimes', format: number, stacked: true, bound: (it) => it.capacity, boundLabel: 'capacity',
      series: ['building', 'idle', 'busy', 'draining'].map((label, at) => ({
        label, class: ['c3', 'c5', 'c1', 'c2'][at], of: (it) => it.runtimes[at],
      })),
    }),
    new Chart({
      title: 'Memory', format: bytes, stacked: true, scale: aboveInBytes, bound: (it) => it.memory_limit, boundLabel: 'bound',
      series: ['code', 'instances', 'kept code'].map((label, at) => ({ label, class: ['c1', 'c4', 'c5'][at], of: (it) => it.memory[at] })),
    }),
    new Chart({
      title: 'Callers that wait', format: number, stacked: true, least: 1, help: 'And what for.',
      series: ['a place', 'an instance', 'a build'].map((label, at) => ({ label, class: ['c2', 'c4', 'c3'][at], of: (it) => it.waiting[at] })),
    }),
    new Chart({
      title: 'Builds and evictions', format: number, least: 1, help: 'Evictions without pause mean that the capacity is too small: the pool thrashes.',
      series: [
        { label: 'built', class: 'c1', of: (it) => sum(it.builds, 'ok') },
        { label: 'failed', class: 'c2', of: (it) => all(it.builds) - sum(it.builds, 'ok') },
        { label: 'evicted', class: 'c4', of: (it) => all(it.evictions) },
      ],
    }),
  ];
  const lists = {
    outcomes: el('section', { class: 'card' }),
    builders: el('section', { class: 'card' }),
    changes: el('section', { class: 'card' }),
  };
  const element = el('div', {}, el('h1', {}, 'Overview'),
    el('div', { class: 'tiles' }, tiles.map((one) => one.element)),
    el('div', { class: 'grid' }, charts.map((chart) => chart.element), Object.values(lists)));

  function update() {
    const { samples } = live;
    const last = samples.at(-1);
    if (!last) return;
    charts.forEach((chart) => chart.draw(samples));
    const recent = samples.slice(-10);
    const per = (of) => recent.reduce((before, sample) => before + of(sample), 0) / recent.length;
    const evaluations = per((it) => all(it.evaluations));
    const errors = per((it) => all(it.evaluations) - sum(it.evaluations, 'ok'));
    const lately = (of) => [...recent].reverse().map(of).find((value) => value) ?? null;
    const [exec, wait] = [lately((it) => it.exec), lately((it) => it.wait)];
    const used = last.runtimes.reduce((a, b) => a + b);
    const held = last.memory.reduce((a, b) => a + b);
    const texts = [
      [`${number(evaluations)} / s`, 'of the last 10 s'],
      [`${number(errors)} / s`, evaluations > 0 ? `${number((100 * errors) / evaluations)} % of evaluations` : 'no evaluations'],
      [seconds(exec?.[1]), `p99; p50 ${seconds(exec?.[0])}`],
      [seconds(wait?.[1]), `p99; p50 ${seconds(wait?.[0])}`],
      [`${number(used)} / ${number(last.capacity)}`, `${number(last.registered)} evaluators registered`],
      [bytes(held), `of ${bytes(last.memory_limit)}`],
    ];
    texts.forEach(([value, note], at) => {
      setText(tiles[at].value, value);
      setText(tiles[at].note, note);
    });
    lists.outcomes.replaceChildren(el('h2', {}, 'Outcomes'), table('Outcomes of the last ten minutes', ['Outcome', 'Evaluations'],
      totals(samples, 'evaluations').map(([word, count]) => [word, number(count)]), 'No evaluation in the last ten minutes.'));
    const built = {};
    for (const sample of samples.slice(-60)) for (const [tenant, count] of sample.built) built[tenant] = (built[tenant] ?? 0) + count;
    const builders = Object.entries(built).sort((a, b) => b[1] - a[1]).slice(0, 5);
    lists.builders.replaceChildren(el('h2', {}, 'New runtimes by tenant'),
      el('p', { class: 'help' }, 'In the last minute. If the pool thrashes, it is for those at the top.'),
      table('New runtimes by tenant in the last minute', ['Tenant', 'Runtimes'],
        builders.map(([tenant, count]) => [el('a', { href: `#/evaluators?tenant=${encodeURIComponent(tenant)}` }, tenant), number(count)]), 'None.'));
    const changes = samples.flatMap((sample) => sample.changes).slice(-8).reverse();
    lists.changes.replaceChildren(el('h2', {}, 'Changes'), el('p', { class: 'help' }, 'Of the last ten minutes. The charts have a line at each.'),
      changes.length === 0 ? el('p', { class: 'empty' }, 'None.')
        : el('ul', { class: 'changes' }, changes.map((it) => el('li', {}, el('time', {}, clock(it.at)), ' ',
          el('a', { href: `#/evaluator/${encodeURIComponent(it.name)}` }, it.name), ` ${it.what}`))));
  }
  update();
  return { element, title: 'Overview', update };
}
