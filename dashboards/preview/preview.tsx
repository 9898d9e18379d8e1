// Draws a board with Grafana's own components, fed by a real Prometheus, without a Grafana server.
import { FieldColorModeId, getDisplayProcessor, ThemeContext } from '@grafana/data';
import {
  BarGauge, BarGaugeDisplayMode, BigValue, BigValueColorMode, BigValueGraphMode, BigValueJustifyMode,
  BigValueTextMode, GlobalStyles, PanelChrome, TimeSeries,
} from '@grafana/ui';
import React from 'react';
import { createRoot } from 'react-dom/client';
import { framesOf, Mark, marks as loadMarks, settings, theme, timeRange } from './data';
import { Heat, Pie, Timeline } from './drawn';

const WIDTH = 1600, ROW = 38, TOP = 52, COLUMN = (WIDTH - 16) / 24;
type Body = { panel: any; frames: any[]; width: number; height: number; marks: Mark[] };

function Stat({ panel, frames, width, height }: Body) {
  const field = frames[0].fields[1];
  return (
    <BigValue
      value={field.display(field.values[0])}
      theme={theme}
      width={width}
      height={height}
      colorMode={BigValueColorMode.Value}
      graphMode={BigValueGraphMode.None}
      justifyMode={BigValueJustifyMode.Auto}
      textMode={BigValueTextMode.Value}
    />
  );
}

function Bars({ panel, frames, width, height }: Body) {
  const fields = frames.map((frame) => frame.fields[1]).sort((a, b) => b.values[0] - a.values[0]);
  const most = Math.max(1e-9, ...fields.map((field) => field.values[0]));
  const tallest = Math.min(32, height / fields.length - 4);
  return (
    <>
      {fields.map((field, index) => {
        field.config = { ...field.config, min: 0, max: most, color: { ...field.config.color, mode: FieldColorModeId.Fixed } };
        field.display = getDisplayProcessor({ field, theme });
        return (
          <div key={index} style={{ marginBottom: 4 }}>
            <BarGauge
              value={{ ...field.display(field.values[0]), title: field.state.displayName }}
              display={field.display}
              field={field.config}
              orientation={'horizontal' as any}
              displayMode={BarGaugeDisplayMode.Gradient}
              theme={theme}
              width={width}
              height={tallest}
              namePlacement={panel.options.namePlacement}
            />
          </div>
        );
      })}
    </>
  );
}

function Lines({ panel, frames, width, height, marks }: Body) {
  const draw = (builder: any) => {
    builder.addHook('draw', (plot: any) => paint(plot, marks));
    return null;
  };
  const legend = { ...panel.options.legend, calcs: panel.options.legend?.calcs ?? [] };
  return (
    <TimeSeries
      frames={frames}
      timeRange={timeRange as any}
      timeZone="utc"
      width={width}
      height={height}
      structureRev={1}
      legend={legend}
    >
      {draw as any}
    </TimeSeries>
  );
}

function paint(plot: any, marks: Mark[]) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.setLineDash([4, 4]);
  ctx.globalAlpha = 0.5;
  for (const { at, color } of marks) {
    const x = plot.valToPos(at, 'x', true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = color;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

const KINDS: Record<string, (body: Body) => React.ReactNode> = {
  stat: Stat, bargauge: Bars, 'state-timeline': Timeline, heatmap: Heat, piechart: Pie, timeseries: Lines,
};

function Content(body: Body) {
  if (!body.frames.some((frame) => frame.fields[1].values.some((value: any) => value != null))) {
    const style = { color: theme.colors.text.secondary, textAlign: 'center' as const, lineHeight: `${body.height}px` };
    return <div style={style}>No data</div>;
  }
  const Kind = KINDS[body.panel.type];
  return <Kind {...body} />;
}

// A fault of one panel is shown in its place.
class Fault extends React.Component<{ children: React.ReactNode }, { error?: Error }> {
  state: { error?: Error } = {};
  static getDerivedStateFromError = (error: Error) => ({ error });
  render = () => (this.state.error ? <pre style={{ color: 'red' }}>{String(this.state.error.stack)}</pre> : this.props.children);
}

function Panel({ panel, frames, marks }: { panel: any; frames: any[]; marks: Mark[] }) {
  const { x, y, w, h } = panel.gridPos;
  const place = { position: 'absolute' as const, left: 8 + x * COLUMN, top: TOP + y * ROW };
  if (panel.type === 'row')
    return <div style={{ ...place, color: theme.colors.text.primary, fontWeight: 500, paddingTop: 8 }}>⌄ {panel.title}</div>;
  const own = marks.filter(({ panels }) => panels === null || panels.includes(panel.id));
  return (
    <div style={place}>
      <PanelChrome title={panel.title} description={panel.description} width={w * COLUMN - 8} height={h * ROW - 8} padding="md">
        {(width, height) => <Fault><Content {...{ panel, frames, width, height, marks: own }} /></Fault>}
      </PanelChrome>
    </div>
  );
}

async function main() {
  const { dashboard } = settings;
  const marks = await loadMarks();
  const panels = await Promise.all(dashboard.panels.map(async (panel: any) => ({ panel, frames: await framesOf(panel) })));
  const bottom = Math.max(...dashboard.panels.map(({ gridPos }: any) => gridPos.y + gridPos.h));
  const page = {
    position: 'relative' as const, width: WIDTH, height: TOP + bottom * ROW + 8,
    background: theme.colors.background.canvas, fontFamily: theme.typography.fontFamily,
  };
  createRoot(document.getElementById('root')!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={page}>
        <div style={{ padding: '14px 16px', fontSize: 20, color: theme.colors.text.primary }}>
          {dashboard.title}
          <span style={{ fontSize: 13, marginLeft: 16, color: theme.colors.text.secondary }}>{dashboard.description}</span>
        </div>
        {panels.map(({ panel, frames }) => <Panel key={panel.id} {...{ panel, frames, marks }} />)}
      </div>
    </ThemeContext.Provider>,
  );
  setTimeout(() => ((window as any).READY = true), 3000);
}

main().catch((error) => {
  document.body.innerText = String(error.stack);
  (window as any).READY = true;
});
