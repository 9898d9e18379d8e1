// What Grafana's back end would do: variables, queries, and data frames with a panel's options.
import { createTheme, dateTime, FieldType, getDisplayProcessor, toDataFrame } from '@grafana/data';

export type Settings = { dashboard: any; prometheus: string; end: number; span: number };
export const settings: Settings = (window as any).PREVIEW;
export const theme = createTheme({ colors: { mode: 'dark' } });
export const start = settings.end - settings.span;
export const timeRange = {
  from: dateTime(start * 1000),
  to: dateTime(settings.end * 1000),
  raw: { from: dateTime(start * 1000), to: dateTime(settings.end * 1000) },
};

const SCRAPE_S = 5;
const step = Math.max(Math.ceil(settings.span / 400), SCRAPE_S);
const variables: Record<string, string> = {
  job: '.*',
  replica: '.*',
  __interval: `${step}s`,
  __rate_interval: `${Math.max(step + SCRAPE_S, 4 * SCRAPE_S)}s`,
  __range: `${settings.span}s`,
};
const PALETTE = ['green', 'yellow', 'blue', 'orange', 'red', 'purple', 'super-light-blue', 'dark-yellow'];
const DRAWING = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, showPoints: 'never',
  pointSize: 5, spanNulls: false, axisPlacement: 'auto', gradientMode: 'none', barAlignment: 0,
  scaleDistribution: { type: 'linear' }, stacking: { mode: 'none', group: 'A' },
  hideFrom: { legend: false, tooltip: false, viz: false }, thresholdsStyle: { mode: 'off' },
};

const substitute = (text: string) =>
  text.replace(/\$\{?(\w+)\}?/g, (whole, name) => variables[name] ?? whole);

async function ask(path: string, parameters: Record<string, string | number>): Promise<any[]> {
  const query = new URLSearchParams(parameters as Record<string, string>);
  const answer = await (await fetch(`${settings.prometheus}/api/v1/${path}?${query}`)).json();
  if (answer.status !== 'success') throw new Error(`${parameters.query}: ${answer.error}`);
  return answer.data.result;
}

const over = (query: string) => ask('query_range', { query, start, end: settings.end, step });

// Serve's names are long; what differs is the last part.
export const short = (text: string) => text.replace(/\b\w+#replica#(\w+)/g, '$1');

function legend(format: string, labels: Record<string, string>): string {
  return short(format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '')) || 'value';
}

// One frame per series, on a shared grid so that gaps stay gaps.
export async function framesOf(panel: any): Promise<any[]> {
  const frames: any[] = [];
  for (const target of panel.targets ?? []) {
    const query = substitute(target.expr);
    const series = target.instant ? await ask('query', { query, time: settings.end }) : await over(query);
    for (const { metric, value, values } of series) {
      const known = new Map((values ?? [value]).map(([at, v]: [number, string]) => [at, finite(v)]));
      const times = target.instant ? [...known.keys()] : grid();
      const name = legend(target.legendFormat ?? '', metric);
      const numbers = times.map((at) => known.get(at) ?? null);
      frames.push(toDataFrame({
        refId: target.refId,
        fields: [
          { name: 'Time', type: FieldType.time, values: times.map((at) => (at as number) * 1000), config: {} },
          { name, type: FieldType.number, values: numbers, labels: metric, config: {} },
        ],
      }));
    }
  }
  // Grafana sorts series of a query by nothing; by name pictures are the same every time.
  frames.sort((a, b) => a.refId.localeCompare(b.refId) || a.fields[1].name.localeCompare(b.fields[1].name));
  frames.forEach((frame, index) => configure(frame, panel, index));
  return frames;
}

const finite = (text: string) => (Number.isFinite(+text) ? +text : null);
const grid = () => Array.from({ length: Math.floor(settings.span / step) + 1 }, (_, i) => start + i * step);

function configure(frame: any, panel: any, index: number) {
  const field = frame.fields[1];
  const config: any = structuredClone(panel.fieldConfig.defaults);
  config.custom = { ...DRAWING, ...config.custom };
  config.displayName = field.name;
  const palette = theme.visualization.getColorByName(PALETTE[index % PALETTE.length]);
  config.color ??= panel.type === 'stat' ? { mode: 'thresholds' } : { mode: 'fixed', fixedColor: palette };
  for (const override of panel.fieldConfig.overrides ?? []) {
    if (!matches(override.matcher, field.name)) continue;
    for (const { id, value } of override.properties) {
      if (id.startsWith('custom.')) config.custom[id.slice(7)] = value;
      else config[id] = value;
    }
  }
  if (config.thresholds)
    config.thresholds.steps = config.thresholds.steps.map((s: any) => ({ ...s, value: s.value ?? -Infinity }));
  field.config = config;
  field.state = { seriesIndex: index, displayName: config.displayName };
  field.display = getDisplayProcessor({ field, theme });
  frame.fields[0].display = getDisplayProcessor({ field: frame.fields[0], theme });
}

const matches = (matcher: any, name: string) =>
  matcher.id === 'byName' ? matcher.options === name : new RegExp(matcher.options.slice(1, -1)).test(name);

export type Mark = { at: number; color: string; panels: number[] | null };

// As Grafana reads annotations whose values are times: every distinct value is one event.
export async function marks(): Promise<Mark[]> {
  const found: Mark[] = [];
  for (const annotation of settings.dashboard.annotations.list) {
    if (!annotation.enable) continue;
    for (const { values } of await over(substitute(annotation.expr)))
      for (const at of new Set<number>(values.map(([, value]: [number, string]) => +value)))
        if (at >= start * 1000)
          found.push({ at, color: annotation.iconColor, panels: annotation.filter?.ids ?? null });
  }
  return found;
}
