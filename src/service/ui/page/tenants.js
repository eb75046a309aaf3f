// Tenants: what they use, what they may have, and what they were refused.

import { bytes, el, number, seconds } from './dom.js';
import { list } from './evaluators.js';

// What is used of a bound.
function of(used, bound, format = number) {
  if (bound === null || bound === undefined) return format(used);
  const part = bound > 0 ? used / bound : 1;
  return el('span', { class: part >= 0.9 && 'bad' }, `${format(used)} / ${format(bound)}`);
}

// A duration comes as text, such as `500ms`.
const perSecond = (bound) => (bound === null || bound === undefined ? '–' : String(bound));

const refused = (it) => it.usage.outcomes.quota_exceeded ?? 0;

const columns = [
  { sort: 'name', head: 'Tenant', cell: (it) => el('a', { href: `#/evaluators?tenant=${encodeURIComponent(it.name)}` }, it.name) },
  { head: 'Evaluators', figure: true, cell: (it) => of(it.evaluators, it.bounds.evaluators) },
  { sort: 'evaluations', head: 'Calls', figure: true, cell: (it) => number(it.usage.evaluations) },
  { sort: 'errors', head: 'Errors', figure: true, cell: (it) => number(it.usage.evaluations - (it.usage.outcomes.ok ?? 0)) },
  { head: 'Over a bound', figure: true, cell: (it) => (refused(it) > 0 ? el('span', { class: 'bad' }, number(refused(it))) : '0') },
  { sort: 'guest', head: 'Guest time', figure: true, cell: (it) => seconds(it.usage.guest_seconds) },
  { head: 'Time / s', figure: true, cell: (it) => perSecond(it.bounds.cpu_per_second) },
  { head: 'Runtimes', figure: true, cell: (it) => of(it.runtimes, it.bounds.runtimes) },
  { sort: 'instances', head: 'Instances', figure: true, cell: (it) => of(it.instances, it.bounds.instances) },
  { head: 'Waiting', figure: true, cell: (it) => of(it.waiting, it.bounds.max_waiting) },
  { sort: 'memory', head: 'Memory', figure: true, cell: (it) => of(it.memory_bytes, it.bounds.memory, bytes) },
];

export function tenants({ parameters }) {
  return list({
    title: 'Tenants', path: '/ui/tenants', columns, parameters, route: 'tenants', label: 'Search tenants',
    least: { sort: 'guest', descending: true },
  });
}
