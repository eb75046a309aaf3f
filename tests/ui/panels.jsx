// Draws one dashboard with Grafana's components, from `window.DATA`.

import 'uplot/dist/uPlot.min.css';
import { FieldConfigOptionsRegistry, FieldType, ThemeContext, applyFieldOverrides, createTheme, dateTime, getFieldDisplayName, reduceField, toDataFrame } from '@grafana/data';
import { BigValue, TimeSeries } from '@grafana/ui';
import React from 'react';
import { createRoot } from 'react-dom/client';

const { time: [start, end], step, dashboards } = window.DATA;
const asked = new URLSearchParams(location.search);
const theme = createTheme({ colors: { mode: asked.get('mode') } });
// Of one of 24 columns, and of a row.
const [WIDTH, HEIGHT] = [1500 / 24, 38];

// The options of fields that the dashboards use, applied as they stand.
const options = new FieldConfigOptionsRegistry();
const option = (path, isCustom) => options.register({
  id: isCustom ? `custom.${path}` : path, path, name: path, isCustom, settings: {},
  editor: () => null, override: () => null, process: (value) => value, shouldApply: () => true, getItemsCount: () => 0,
});
for (const path of ['color', 'decimals', 'displayName', 'mappings', 'max', 'min', 'noValue', 'thresholds', 'unit']) option(path, false);
for (const path of ['axisPlacement', 'axisSoftMax', 'axisSoftMin', 'drawStyle', 'fillOpacity', 'gradientMode', 'hideFrom', 'lineInterpolation', 'lineStyle', 'lineWidth', 'pointSize', 'scaleDistribution', 'showPoints', 'spanNulls', 'stacking', 'thresholdsStyle']) option(path, true);

function legend(format, labels) {
  if (!format || format === '__auto') return Object.keys(labels).length > 0 ? JSON.stringify(labels) : 'value';
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');
}

function frames({ results, fieldConfig }) {
  const data = results.flatMap(({ refId, legend: format, series }) => series.map(({ metric, values, value }) => {
    const [name, points] = [legend(format, metric), values ?? [value]];
    return toDataFrame({ refId, name, fields: [
      { name: 'Time', type: FieldType.time, values: points.map(([at]) => at * 1000), config: { interval: step * 1000 } },
      { name: 'Value', type: FieldType.number, labels: metric, values: points.map(([, point]) => Number(point)), config: { displayNameFromDS: name } },
    ] });
  }));
  return applyFieldOverrides({ data, fieldConfig, replaceVariables: (text) => text, theme, timeZone: 'utc', fieldConfigRegistry: options });
}

function Values({ panel, data, width, height }) {
  const fields = data.flatMap((frame) => frame.fields.filter(({ type }) => type === FieldType.number).map((field) => [field, frame]));
  if (fields.length === 0) return <p>{panel.fieldConfig.defaults.noValue}</p>;
  return <div style={{ display: 'flex' }}>{fields.slice(0, 6).map(([field, frame], at) => {
    const last = reduceField({ field, reducers: ['lastNotNull'] }).lastNotNull;
    const title = fields.length > 1 ? getFieldDisplayName(field, frame, data) : undefined;
    return <BigValue key={at} width={width / Math.min(6, fields.length)} height={height} value={{ ...field.display(last), title }} theme={theme} colorMode="value" graphMode="none" textMode={panel.options.textMode ?? 'auto'} />;
  })}</div>;
}

function Content({ panel, width, height }) {
  const data = frames(panel);
  if (panel.type === 'stat' || panel.type === 'gauge') return <Values {...{ panel, data, width, height }} />;
  if (panel.type !== 'timeseries') return <p>({panel.type}: only Grafana itself draws it)</p>;
  if (data.length === 0) return <p>no data</p>;
  const range = { from: dateTime(start * 1000), to: dateTime(end * 1000), raw: { from: 'now-5m', to: 'now' } };
  return <TimeSeries width={width} height={height} frames={data} timeRange={range} timeZone="utc" legend={panel.options.legend} options={panel.options}>{() => null}</TimeSeries>;
}

class Guard extends React.Component {
  state = {};

  static getDerivedStateFromError(error) { return { error }; }

  render() { return this.state.error ? <pre style={{ color: 'red' }}>{String(this.state.error)}</pre> : this.props.children; }
}

function Panel({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const place = { position: 'absolute', left: x * WIDTH, top: y * HEIGHT, width: w * WIDTH - 8, height: h * HEIGHT - 8, overflow: 'hidden' };
  if (panel.type === 'row') return <h3 style={{ ...place, margin: 0 }}>{panel.title}</h3>;
  return <section className="panel" title={panel.title} style={{ ...place, background: theme.colors.background.primary, border: `1px solid ${theme.colors.border.weak}` }}>
    <div style={{ padding: '4px 8px', fontWeight: 500 }}>{panel.title}</div>
    <Guard><Content panel={panel} width={w * WIDTH - 26} height={h * HEIGHT - 46} /></Guard>
  </section>;
}

const { panels } = dashboards[Number(asked.get('dashboard'))];
const height = HEIGHT * Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h));
createRoot(document.getElementById('root')).render(<ThemeContext.Provider value={theme}>
  <div style={{ position: 'relative', width: 1500, height, background: theme.colors.background.canvas, color: theme.colors.text.primary, font: '14px sans-serif' }}>
    {panels.map((panel) => <Panel key={panel.id} panel={panel} />)}
  </div>
</ThemeContext.Provider>);
