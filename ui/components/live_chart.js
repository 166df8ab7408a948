// One curve. Gradio gives element, props, trigger and watch. This draws props.value (a figure of
// ui/render/charts) into its own node and keeps that node, so zoom, pan and hover survive every
// refresh. Colours are names of CSS variables, read when drawing.
const plot = element.querySelector('.plot');
const unzoom = element.querySelector('.unzoom');
let drawn = false, hovering = false, dragging = false, waiting = false;
let whole = false; // whether outliers are drawn too
let at = -1; // index of the point that the arrow keys reached

// plotly.js is 4.8 MB: it is loaded once, when the page is shown and the browser is idle.
// Its address is in the page's head.
function plotly() {
  window.studioPlotly ??= new Promise((resolve, reject) => {
    const load = () => {
      const tag = document.createElement('script');
      tag.src = document.querySelector('meta[name="plotly-js"]').content;
      tag.onload = () => resolve(window.Plotly);
      tag.onerror = () => {
        window.studioPlotly = undefined;
        tag.remove();
        reject(new Error('plotly.js did not arrive'));
      };
      document.head.append(tag);
    };
    (window.requestIdleCallback || setTimeout)(load, {timeout: 400});
  });
  return window.studioPlotly;
}

const style = () => getComputedStyle(element);

// Replaces "--accent" by its colour in the current theme, anywhere in the figure but in names,
// which are foreign text.
function themed(value, css, key = '') {
  if (typeof value === 'string') {
    return value.startsWith('--') && key !== 'name' ? css.getPropertyValue(value).trim() : value;
  }
  if (Array.isArray(value)) {
    const numbers = value.length && typeof value[0] === 'number';
    return numbers ? value : value.map(item => themed(item, css, key));
  }
  if (value && typeof value === 'object') {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, css, k)]));
  }
  return value;
}

function layout(figure, css) {
  const colour = name => css.getPropertyValue(name).trim();
  const size = parseFloat(css.getPropertyValue('--chart-font'));
  const font = {family: css.fontFamily, size, color: colour('--mute')};
  const axis = {
    gridcolor: colour('--chart-grid'),
    linecolor: colour('--line'),
    zerolinecolor: colour('--chart-zero'),
    zerolinewidth: 1,
    tickfont: font,
    ticks: '',
    automargin: true,
    nticks: 5,
    exponentformat: 'e',
    minexponent: 4,
    separatethousands: true,
    title: {font, standoff: 6},
    tickcolor: colour('--line'),
  };
  const xaxis = {
    ...axis,
    showgrid: false,
    hoverformat: ',~r',
    spikecolor: colour('--line-strong'),
    spikethickness: 1,
    spikedash: 'solid',
  };
  const yaxis = {...axis, uirevision: figure.key + whole};
  const yaxis2 = {...axis, overlaying: 'y', side: 'right', showgrid: false, zeroline: false};
  const own = themed(figure.layout, css);
  const merge = (a, b = {}) => ({...a, ...b, title: {...a.title, ...(b.title || {})}});
  return {
    ...own,
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font,
    showlegend: false,
    uirevision: figure.key,
    margin: {l: 8, r: own.yaxis2 ? 8 : 12, t: 6, b: 8},
    hovermode: 'x unified',
    hoverdistance: 40,
    dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom',
    hoverlabel: {
      bgcolor: colour('--card'),
      bordercolor: colour('--line'),
      font: {...font, color: colour('--ink')},
      namelength: 28,
    },
    xaxis: merge(xaxis, own.xaxis),
    yaxis: merge(yaxis, ownY(figure, own)),
    ...(own.yaxis2 ? {yaxis2: merge(yaxis2, own.yaxis2)} : {}),
  };
}

// The figure's own y axis; without outliers if they are left out.
function ownY(figure, own) {
  return figure.clipped && !whole ? {...own.yaxis, range: figure.clipped.range} : own.yaxis;
}

function clipped(figure) {
  const line = element.querySelector('.curve-clipped');
  const says = figure.clipped?.says || '';
  line.hidden = !figure.clipped;
  line.querySelector('span').textContent = whole ? says.replace('not drawn', 'far off') : says;
  line.querySelector('button').textContent = whole ? 'Leave them out' : 'Show them';
}

function legend(figure, css) {
  const items = (figure.legend || []).map(entry => {
    const item = document.createElement('span');
    const mark = document.createElement('i');
    mark.className = `mark ${entry.dash || 'solid'}`;
    mark.style.setProperty('--mark', css.getPropertyValue(entry.colour).trim());
    item.append(mark, entry.name); // as text, never as HTML: a run's name is foreign
    return item;
  });
  element.querySelector('.legend').replaceChildren(...items);
}

function texts(figure) {
  element.querySelector('.curve-title').textContent = figure.title;
  element.querySelector('.curve-now').textContent = figure.now || '';
  element.querySelector('.curve-note').textContent = figure.note || '';
  element.querySelector('.takes').hidden = !figure.traces.length;
  plot.setAttribute('aria-label', figure.spoken || figure.title);
  plot.dataset.empty = figure.empty || '';
  plot.classList.toggle('is-empty', !figure.traces.length);
  clipped(figure);
}

async function draw() {
  const figure = props.value;
  if (!figure || !figure.title) return;
  texts(figure);
  if (!figure.traces.length) {
    legend(figure, style());
    if (drawn) { window.Plotly.purge(plot); drawn = false; }
    return;
  }
  if (!plot.clientWidth) return; // in a hidden tab; the ResizeObserver below draws it later
  let Plotly;
  // If the server is away, the next value tries again.
  try { Plotly = await plotly(); } catch { return; }
  const css = style();
  legend(figure, css);
  const options = {
    displayModeBar: false, responsive: false, doubleClick: 'reset', showTips: false,
  };
  await Plotly.react(plot, themed(figure.traces, css), layout(figure, css), options);
  if (drawn) return;
  drawn = true;
  plot.on('plotly_click', event => {
    const point = event.points.find(p => typeof p.customdata === 'number');
    if (point) trigger('pick', {step: point.customdata});
  });
  plot.on('plotly_relayout', () => { unzoom.hidden = !zoomed(); });
  plot.on('plotly_hover', () => { hovering = true; });
  plot.on('plotly_unhover', () => { hovering = false; if (waiting) refresh(); });
}

// A redraw removes the hover label and interrupts a drag. So it waits until the drag has ended and
// the pointer has left, but for a resting pointer at most four seconds: the curve is live.
let timer = 0;
function refresh() {
  if (dragging || (hovering && plot.matches(':hover'))) {
    waiting = true;
    clearTimeout(timer);
    if (!dragging) timer = setTimeout(() => { hovering = false; refresh(); }, 4000);
    return;
  }
  waiting = false;
  draw();
}
plot.addEventListener('pointerdown', () => { dragging = true; }, true);
window.addEventListener('pointerup', () => {
  if (!dragging) return;
  dragging = false;
  if (waiting) setTimeout(refresh, 300); // after Plotly has applied the zoom
}, true);

unzoom.addEventListener('click', () => {
  unzoom.hidden = true;
  const range = ownY(props.value, props.value.layout)?.range;
  const y = range ? {'yaxis.range': [...range]} : {'yaxis.autorange': true};
  window.Plotly.relayout(plot, {'xaxis.autorange': true, ...y});
});
function zoomed() {
  const range = ownY(props.value, props.value.layout)?.range, now = plot.layout.yaxis;
  const width = range ? Math.abs(range[1] - range[0]) : 0;
  const y = range
    ? now.range.some((v, i) => Math.abs(v - range[i]) > 1e-6 * width)
    : now.autorange === false;
  return y || plot.layout.xaxis.autorange === false;
}

element.querySelector('.whole').addEventListener('click', () => { whole = !whole; draw(); });

// Keyboard: arrows move from point to point, Home and End jump, Enter opens the groups of a point
// as a click does.
function walkable() {
  return (plot.data || []).find(
    t => Array.isArray(t.customdata) && t.hoverinfo !== 'skip' && t.opacity === undefined);
}
const plain = name => (name || props.value.title)
  .replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&amp;', '&');
plot.addEventListener('keydown', event => {
  const trace = drawn && walkable();
  if (!trace || event.altKey || event.ctrlKey || event.metaKey) return;
  const last = trace.x.length - 1;
  if (event.key === 'Enter' && at >= 0 && at <= last) {
    event.preventDefault();
    trigger('pick', {step: trace.customdata[at]});
    return;
  }
  const next = {
    ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1), Home: 0, End: last,
  }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  at = next;
  const x = trace.x[at];
  const hovered = {curveNumber: plot.data.indexOf(trace), pointNumber: at};
  window.Plotly.Fx.hover(plot, [hovered]);
  const values = plot.data.filter(t => t.hoverinfo !== 'skip' && t.x.includes(x)).map(t => {
    const i = t.x.indexOf(x);
    return `${plain(t.name)} ${t.text?.[i] ?? t.y[i] ?? 'nothing'}`;
  });
  element.querySelector('.curve-at').textContent = `${props.value.axis} ${x}: ${values.join(', ')}`;
});
plot.addEventListener('blur', () => { if (drawn && at >= 0) window.Plotly.Fx.unhover(plot); });

// Downloads: the picture as it is zoomed, and the drawn points as a table. Each x is a row, each
// line a column.
function save(address, kind) {
  const link = document.createElement('a');
  link.href = address;
  link.download = `${props.value.title.toLowerCase().replace(/[^a-z0-9]+/g, '-')}.${kind}`;
  link.click();
}
async function png() {
  const layout = {
    ...plot.layout,
    paper_bgcolor: style().getPropertyValue('--card').trim(),
    title: {text: props.value.title},
    margin: {l: 60, r: 30, t: 50, b: 40},
    showlegend: plot.data.length > 1,
  };
  const format = {format: 'png', width: 960, height: 540, scale: 2};
  save(await window.Plotly.toImage({data: plot.data, layout}, format), 'png');
}
const cell = value => {
  if (typeof value === 'number') return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value; // or a spreadsheet would run it
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
function csv() {
  const columns = [props.value.axis], rows = new Map();
  const add = (name, xs, ys) => {
    columns.push(name);
    xs.forEach((x, i) => {
      if (!rows.has(x)) rows.set(x, []);
      rows.get(x)[columns.length - 1] = ys[i];
    });
  };
  for (const t of props.value.traces) {
    add(plain(t.name), t.x, t.y);
    if (!t.error_y) continue;
    add(`${plain(t.name)}, low`, t.x, t.y.map((y, i) => y - t.error_y.arrayminus[i]));
    add(`${plain(t.name)}, high`, t.x, t.y.map((y, i) => y + t.error_y.array[i]));
  }
  const lines = [...rows].sort((a, b) => a[0] - b[0]).map(
    ([x, row]) => columns.map((_, i) => i === 0 ? x : row[i] ?? ''));
  const text = [columns, ...lines].map(line => line.map(cell).join(',')).join('\n') + '\n';
  const address = URL.createObjectURL(new Blob([text], {type: 'text/csv'}));
  save(address, 'csv');
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
element.querySelector('.takes').addEventListener('click', event => {
  const kind = event.target.dataset.take;
  if (drawn && kind) (kind === 'png' ? png : csv)();
});
watch('value', refresh);
new ResizeObserver(() => {
  if (!plot.clientWidth) return;
  if (drawn) window.Plotly.Plots.resize(plot); else draw();
}).observe(plot);
// Gradio marks dark mode by a class on the body.
new MutationObserver(() => { if (drawn) draw(); })
  .observe(document.body, {attributes: true, attributeFilter: ['class']});
draw();
