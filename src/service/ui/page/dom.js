// Makes elements. What a name or an output says is always text, never markup.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'value' || name === 'checked' || name === 'selected') element[name] = value;
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  // A string becomes a text node.
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Replaces what an element holds, unless that is the same already: a screen reader would read it again.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const number = (value) => (value ?? 0).toLocaleString('en', { maximumFractionDigits: 1 });

export const count = (value, what) => `${number(value)} ${what}${value === 1 ? '' : 's'}`;

export function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return '–';
  if (value === 0) return '0 s';
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1000).toPrecision(value < 0.1 ? 2 : 3)} ms`;
  if (value < 120) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

export function ago(millis) {
  if (!millis) return 'never';
  const passed = Math.max(0, (Date.now() - millis) / 1000);
  return passed < 2 ? 'now' : `${seconds(passed)} ago`;
}

export const clock = (millis) => new Date(millis).toLocaleTimeString('en-GB');

// A label and a value, as a list of terms.
export function facts(pairs) {
  const there = pairs.filter(([, value]) => value !== null && value !== undefined);
  return el('dl', { class: 'facts' }, there.map(([term, value]) => el('div', {}, el('dt', {}, term), el('dd', {}, value))));
}

// Runs `work` when the user stops typing.
export function debounce(work, wait = 200) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, wait);
  };
}
