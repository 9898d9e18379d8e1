// Panels that Grafana does not publish as components, redrawn: state timeline, heatmap, pie.
import { dateTime, formattedValueToString, getValueFormat } from '@grafana/data';
import React from 'react';
import { Mark, settings, start, theme } from './data';

type Drawn = { frames: any[]; width: number; height: number; panel: any; marks: Mark[] };
const GREY = theme.colors.text.secondary;
const clock = (at: number) => dateTime(at * 1000).format(settings.span < 1800 ? 'HH:mm:ss' : 'HH:mm');

function Times({ left, width, y, count = 7 }: { left: number; width: number; y: number; count?: number }) {
  return (
    <>
      {Array.from({ length: count }, (_, i) => (
        <text key={i} x={left + (i * width) / (count - 1)} y={y} fontSize={11} textAnchor="middle" fill={GREY}>
          {clock(start + (i * settings.span) / (count - 1))}
        </text>
      ))}
    </>
  );
}

type Entries = { text: string; color: string }[];

// In lines of `columns`, the last of them at `y`.
function Legend({ entries, x, y, columns = 10 }: { entries: Entries; x: number; y: number; columns?: number }) {
  const lines = Math.ceil(entries.length / columns);
  return (
    <>
      {entries.map(({ text, color }, i) => (
        <g
          key={text}
          transform={`translate(${x + (i % columns) * 132} ${y - (lines - 1 - Math.floor(i / columns)) * 15})`}
        >
          <rect width={14} height={4} y={-6} fill={color} />
          <text x={18} fontSize={11} fill={theme.colors.text.primary}>{text}</text>
        </g>
      ))}
    </>
  );
}

export function Timeline({ frames, width, height, panel, marks }: Drawn) {
  const left = 72, inner = width - left - 24, meanings = panel.fieldConfig.defaults.mappings[0].options;
  const row = (height - 44) / frames.length;
  const x = (ms: number) => left + ((ms / 1000 - start) / settings.span) * inner;
  const used = new Set<string>();
  const boxes = frames.flatMap((frame, r) => {
    const [times, values] = [frame.fields[0].values, frame.fields[1].values];
    const rectangles: React.ReactNode[] = [];
    for (let from = 0, to = 1; to <= values.length; to++) {
      if (to < values.length && values[to] === values[from]) continue;
      const meaning = meanings[values[from]];
      if (meaning && values[from]) {
        used.add(String(values[from]));
        const [a, b] = [x(times[from]), x(times[Math.min(to, values.length - 1)])];
        rectangles.push(
          <g key={`${r}-${from}`}>
            <rect x={a} y={r * row + 4} width={Math.max(1, b - a)} height={row * 0.85} fill={meaning.color} fillOpacity={0.85} />
            {b - a > 110 && <text x={a + 6} y={r * row + row / 2 + 6} fontSize={12} fill="#111">{meaning.text}</text>}
          </g>,
        );
      }
      from = to;
    }
    return rectangles;
  });
  return (
    <svg width={width} height={height}>
      {frames.map((frame, r) => (
        <text key={r} x={0} y={r * row + row / 2 + 6} fontSize={12} fill={GREY}>{frame.fields[1].state.displayName}</text>
      ))}
      {boxes}
      <Times left={left} width={inner} y={height - 24} />
      {marks.map(({ at, color }, i) => (
        <g key={i}>
          <line x1={x(at)} x2={x(at)} y1={0} y2={height - 44} stroke={color} strokeDasharray="4 4" opacity={0.5} />
          <path d={`M${x(at)} ${height - 44} l-4 7 h8 z`} fill={color} />
        </g>
      ))}
      <Legend entries={[...used].sort((a, b) => +a - +b).map((code) => meanings[code])} x={left} y={height - 2} />
    </svg>
  );
}

export function Heat({ frames, width, height, panel }: Drawn) {
  const bound = (frame: any) => (frame.fields[1].labels.le === '+Inf' ? Infinity : +frame.fields[1].labels.le);
  const cumulative = frames.map((f) => ({ le: bound(f), values: f.fields[1].values })).sort((a, b) => a.le - b.le);
  const all = cumulative.map(({ le, values }, i) => ({
    le,
    values: values.map((v: number, k: number) => (v == null ? 0 : Math.max(0, v - (cumulative[i - 1]?.values[k] ?? 0)))),
  }));
  const seen = all.map(({ values }) => values.some((v: number) => v > 0.001));
  const rows = all.slice(Math.max(0, seen.indexOf(true) - 1), seen.lastIndexOf(true) + 2);
  const most = Math.max(...rows.flatMap(({ values }) => values));
  const left = 56, right = 20, count = rows[0]?.values.length ?? 1;
  const [w, h] = [(width - left - right) / count, (height - 22) / rows.length];
  const unit = getValueFormat(panel.options.yAxis.unit);
  return (
    <svg width={width} height={height}>
      {rows.map(({ le, values }, r) => (
        <g key={r}>
          <text x={left - 6} y={height - 22 - r * h - h / 2 + 4} fontSize={10} textAnchor="end" fill={GREY}>
            {le === Infinity ? '+Inf' : formattedValueToString(unit(le))}
          </text>
          {values.map((v: number, k: number) => v > 0.001 && (
            <rect key={k} x={left + k * w} y={height - 22 - (r + 1) * h} width={w} height={h - 1} fill={heat(v / most)} />
          ))}
        </g>
      ))}
      <Times left={left} width={width - left - right} y={height - 6} count={4} />
    </svg>
  );
}

const heat = (share: number) => `hsl(${32 - 14 * Math.sqrt(share)},95%,${88 - 50 * Math.sqrt(share)}%)`;

export function Pie({ frames, width, height }: Drawn) {
  const total = frames.reduce((sum, f) => sum + f.fields[1].values[0], 0);
  const columns = Math.max(1, Math.floor(width / 132)), lines = Math.ceil(frames.length / columns);
  const radius = Math.min(width, height - 8 - 15 * lines) / 2 - 4, cx = width / 2, cy = radius + 4;
  const point = (angle: number, r = radius) => `${cx + r * Math.cos(angle)} ${cy + r * Math.sin(angle)}`;
  let angle = -Math.PI / 2;
  const slices = frames.map((f) => {
    const { state, config, values } = f.fields[1], share = values[0] / total;
    const [from, to] = [angle, (angle += share * 2 * Math.PI * 0.99999)];
    return { text: state.displayName, color: config.color.fixedColor, share, from, to };
  });
  return (
    <svg width={width} height={height}>
      {slices.map(({ text, color, share, from, to }) => (
        <g key={text}>
          <path
            d={`M${cx} ${cy} L${point(from)} A${radius} ${radius} 0 ${share > 0.5 ? 1 : 0} 1 ${point(to)} Z`}
            fill={color}
            stroke={theme.colors.background.primary}
          />
          {share > 0.04 && (
            <text transform={`translate(${point((from + to) / 2, 0.7 * radius)})`} fontSize={12} textAnchor="middle" fill="#111">
              {(100 * share).toFixed(0)}%
            </text>
          )}
        </g>
      ))}
      <Legend entries={slices} x={8} y={height - 4} columns={columns} />
    </svg>
  );
}
