// Small charts over the last ten minutes, or as long as the server has run: lines, or areas on top of each other. Drawn as SVG, described in words.

import { el, seconds, setText, svg } from './dom.js';

const [WIDTH, HEIGHT, LEAST, MOST] = [600, 150, 60, 600];

// A bound that reads well, at or above `value`.
export function above(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

// `series`: [{ label, class, of(sample) }]. `stacked` series add up; others are lines. `bound(sample)` is a dashed line.
// `format` writes a value; `scale` gives a bound for the axis that reads well.
export class Chart {
  constructor({ title, help, series, stacked = false, bound, boundLabel, format, least = 0, scale = above }) {
    Object.assign(this, { title, series, stacked, bound, format, least, scale });
    const id = `chart-${title.toLowerCase().replace(/[^a-z]+/g, '-')}`;
    this.plot = svg('g');
    this.marks = svg('g', { class: 'marks' });
    this.cursor = svg('line', { class: 'cursor', y1: 0, y2: HEIGHT, visibility: 'hidden' });
    const area = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      [0.5, 1].map((part) => svg('line', { class: 'grid', x1: 0, x2: WIDTH, y1: HEIGHT * part - (part === 1 ? 0.5 : 0), y2: HEIGHT * part - (part === 1 ? 0.5 : 0) })),
      this.plot, this.marks, this.cursor);
    area.addEventListener('pointermove', (event) => this.point(event.offsetX / area.clientWidth));
    area.addEventListener('pointerleave', () => this.point(null));
    this.top = el('span', { class: 'top' });
    this.half = el('span', { class: 'half' });
    this.values = series.map(() => el('span', { class: 'value' }));
    const legend = series.map((one, at) => el('li', {}, el('span', { class: `swatch ${one.class}`, 'aria-hidden': 'true' }), one.label, ' ', this.values[at]));
    if (bound) {
      this.boundValue = el('span', { class: 'value' });
      legend.push(el('li', {}, el('span', { class: 'swatch bound', 'aria-hidden': 'true' }), boundLabel, ' ', this.boundValue));
    }
    this.at = el('span', { class: 'at' });
    [this.from, this.middle] = [el('span'), el('span')];
    this.range = MOST;
    this.element = el('section', { class: 'card chart', 'aria-labelledby': id },
      el('div', { class: 'chart-head' }, el('h2', { id }, title), this.at),
      help && el('p', { class: 'help' }, help),
      el('ul', { class: 'legend' }, legend),
      el('div', { class: 'plot' }, area, this.top, this.half),
      el('div', { class: 'axis', 'aria-hidden': 'true' }, this.from, this.middle, el('span', {}, 'now')));
    this.pointed = null;
    this.samples = [];
  }

  point(part) {
    this.pointed = part;
    this.tell();
  }

  // The values of the legend: the last sample's, or those under the pointer.
  tell() {
    const { samples } = this;
    let sample = samples.at(-1);
    if (!sample) return;
    const isPointed = this.pointed !== null;
    if (isPointed) {
      const wanted = sample.at - (1 - this.pointed) * this.range * 1000;
      sample = samples.reduce((best, one) => (Math.abs(one.at - wanted) < Math.abs(best.at - wanted) ? one : best));
      const x = WIDTH * (1 - (samples.at(-1).at - sample.at) / 1000 / this.range);
      this.cursor.setAttribute('x1', x);
      this.cursor.setAttribute('x2', x);
    }
    this.cursor.setAttribute('visibility', isPointed ? 'visible' : 'hidden');
    setText(this.at, isPointed ? new Date(sample.at).toLocaleTimeString('en-GB') : '');
    this.series.forEach((one, at) => {
      const value = one.of(sample);
      setText(this.values[at], value === null || value === undefined ? '–' : this.format(value));
    });
    if (this.bound) setText(this.boundValue, this.format(this.bound(sample)));
  }

  draw(samples) {
    this.samples = samples;
    if (samples.length === 0) return;
    const last = samples.at(-1).at;
    this.range = Math.min(MOST, Math.max(LEAST, (last - samples[0].at) / 1000));
    setText(this.from, `${seconds(this.range)} ago`);
    setText(this.middle, seconds(this.range / 2));
    const rows = samples.map((sample) => {
      let sum = 0;
      return this.series.map((one) => {
        const value = one.of(sample);
        if (value === null || value === undefined) return null;
        sum += value;
        return this.stacked ? sum : value;
      });
    });
    const bounds = this.bound ? samples.map((sample) => this.bound(sample)) : [];
    const reached = Math.max(this.least, ...rows.flat().filter((value) => value !== null));
    const bound = Math.max(0, ...bounds);
    // A bound that is far away would make all else a line at the bottom.
    const isNear = bound > 0 && reached >= bound / 20;
    const top = isNear && reached <= bound ? bound : this.scale(reached);
    const x = (at) => (WIDTH * (1 - (last - at) / 1000 / this.range)).toFixed(1);
    const y = (value) => (HEIGHT * (1 - value / top)).toFixed(1);
    setText(this.top, this.format(top));
    setText(this.half, this.format(top / 2));
    const shapes = this.series.map((one, at) => {
      if (this.stacked) {
        const up = rows.map((row, index) => `${x(samples[index].at)},${y(row[at])}`);
        const down = rows.map((row, index) => `${x(samples[index].at)},${y(at > 0 ? row[at - 1] : 0)}`).reverse();
        return svg('polygon', { class: one.class, points: [...up, ...down].join(' ') });
      }
      // A second without evaluations is a gap.
      let path = '';
      let wasThere = false;
      rows.forEach((row, index) => {
        const value = row[at];
        if (value !== null) path += `${wasThere ? 'L' : 'M'}${x(samples[index].at)} ${y(value)}${wasThere ? '' : 'h.1'}`;
        wasThere = value !== null;
      });
      return svg('path', { class: one.class, d: path || 'M0 0', 'vector-effect': 'non-scaling-stroke' });
    });
    if (isNear) {
      const points = samples.map((sample, index) => `${x(sample.at)},${y(bounds[index])}`);
      shapes.push(svg('polyline', { class: 'bound', points: points.join(' '), 'vector-effect': 'non-scaling-stroke' }));
    }
    this.plot.replaceChildren(...shapes);
    const changed = samples.filter((sample) => sample.changes.length > 0);
    this.marks.replaceChildren(...changed.map((sample) => svg('line', { x1: x(sample.at), x2: x(sample.at), y1: 0, y2: HEIGHT, 'vector-effect': 'non-scaling-stroke' })));
    this.tell();
  }
}
