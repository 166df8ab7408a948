// One curve. Gradio gives element, props, trigger and watch; this draws props.value (a figure of charts.py) into its own node
// and keeps that node, so zoom, pan and hover survive every refresh. Colours are names of CSS variables, read when drawing.
const plot = element.querySelector('.plot');
const unzoom = element.querySelector('.unzoom');
let drawn = false, hovering = false, dragging = false, waiting = false;

// plotly.js is 4.8 MB: it is fetched once, when the page is there and the browser idle. Its address stands in the page's head.
function plotly() {
  window.studioPlotly ??= new Promise((resolve, reject) => (window.requestIdleCallback || setTimeout)(() => {
    const tag = document.createElement('script');
    tag.src = document.querySelector('meta[name="plotly-js"]').content;
    tag.onload = () => resolve(window.Plotly);
    tag.onerror = () => { window.studioPlotly = undefined; tag.remove(); reject(new Error('plotly.js did not arrive')); };
    document.head.append(tag);
  }, {timeout: 400}));
  return window.studioPlotly;
}

const style = () => getComputedStyle(element);

// "--accent" -> the colour it stands for in the present theme, anywhere in the figure but in text that came from elsewhere.
function themed(value, css, key = '') {
  if (typeof value === 'string') return value.startsWith('--') && key !== 'name' ? css.getPropertyValue(value).trim() : value;
  if (Array.isArray(value)) return value.length && typeof value[0] === 'number' ? value : value.map(v => themed(v, css, key));
  if (value && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, css, k)]));
  return value;
}

function layout(figure, css) {
  const colour = name => css.getPropertyValue(name).trim();
  const px = name => parseFloat(css.getPropertyValue(name));
  const font = {family: css.fontFamily, size: px('--chart-font'), color: colour('--mute')};
  const axis = {gridcolor: colour('--chart-grid'), linecolor: colour('--line'), zerolinecolor: colour('--chart-zero'), zerolinewidth: 1,
    tickfont: font, ticks: '', automargin: true, nticks: 5, exponentformat: 'e', minexponent: 4, separatethousands: true,
    title: {font, standoff: 6}, tickcolor: colour('--line')};
  const own = themed(figure.layout, css);
  const merge = (a, b = {}) => ({...a, ...b, title: {...a.title, ...(b.title || {})}});
  return {
    ...own, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font, showlegend: false, uirevision: figure.key,
    margin: {l: 8, r: own.yaxis2 ? 8 : 12, t: 6, b: 8}, hovermode: 'x unified', hoverdistance: 40, dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom',
    hoverlabel: {bgcolor: colour('--card'), bordercolor: colour('--line'), font: {...font, color: colour('--ink')}, namelength: 28},
    xaxis: merge({...axis, showgrid: false, hoverformat: ',~r', spikecolor: colour('--line-strong'), spikethickness: 1, spikedash: 'solid'}, own.xaxis), yaxis: merge(axis, own.yaxis),
    ...(own.yaxis2 ? {yaxis2: merge({...axis, overlaying: 'y', side: 'right', showgrid: false, zeroline: false}, own.yaxis2)} : {}),
  };
}

function legend(figure, css) {
  const place = element.querySelector('.legend');
  place.replaceChildren(...(figure.legend || []).map(entry => {
    const item = document.createElement('span');
    const mark = document.createElement('i');
    mark.className = `mark ${entry.dash || 'solid'}`;
    mark.style.setProperty('--mark', css.getPropertyValue(entry.colour).trim());
    item.append(mark, entry.name); // text, never HTML: a run's name is foreign
    return item;
  }));
}

async function draw() {
  const figure = props.value;
  if (!figure || !figure.title) return;
  element.querySelector('.curve-title').textContent = figure.title;
  element.querySelector('.curve-now').textContent = figure.now || '';
  element.querySelector('.curve-note').textContent = figure.note || '';
  plot.setAttribute('aria-label', figure.spoken || figure.title);
  plot.dataset.empty = figure.empty || '';
  plot.classList.toggle('is-empty', !figure.traces.length);
  if (!figure.traces.length) {
    legend(figure, style());
    if (drawn) { window.Plotly.purge(plot); drawn = false; }
    return;
  }
  if (!plot.clientWidth) return; // in a tab that is not shown: the observer below draws it when it is
  let Plotly;
  try { Plotly = await plotly(); } catch { return; } // the server is gone for now; the next value tries again
  const css = style();
  legend(figure, css);
  await Plotly.react(plot, themed(figure.traces, css), layout(figure, css), {displayModeBar: false, responsive: false, doubleClick: 'reset', showTips: false});
  if (drawn) return;
  drawn = true;
  plot.on('plotly_click', event => {
    const point = event.points.find(p => typeof p.customdata === 'number');
    if (point) trigger('pick', {step: point.customdata});
  });
  plot.on('plotly_relayout', () => { unzoom.hidden = plot.layout.xaxis.autorange !== false && plot.layout.yaxis.autorange !== false; });
  plot.on('plotly_hover', () => { hovering = true; });
  plot.on('plotly_unhover', () => { hovering = false; if (waiting) refresh(); });
}

// A redraw takes the hover label away and breaks a drag, so it waits: for the drag to end, and for the pointer to leave, but then at
// most a few seconds, for the curve is live.
let patience = 0;
function refresh() {
  if (dragging || (hovering && plot.matches(':hover'))) {
    waiting = true;
    clearTimeout(patience);
    if (!dragging) patience = setTimeout(() => { hovering = false; refresh(); }, 4000);
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
  window.Plotly.relayout(plot, {'xaxis.autorange': true, 'yaxis.autorange': true});
});
watch('value', refresh);
new ResizeObserver(() => {
  if (!plot.clientWidth) return;
  if (drawn) window.Plotly.Plots.resize(plot); else draw();
}).observe(plot);
// Gradio marks dark mode by a class on the body.
new MutationObserver(() => { if (drawn) draw(); }).observe(document.body, {attributes: true, attributeFilter: ['class']});
draw();
