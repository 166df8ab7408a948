// Curves. studioChart draws a figure of ui/render/charts into the component's own node and keeps that
// node, so zoom, pan and hover survive every refresh. Colours are names of CSS variables, read when
// drawing. element, props, trigger and watch are what Gradio gives to a component's script.

// What a person switched off in legends: runs, in all charts, and lines. A reload keeps it.
const HIDDEN = 'studio-hidden-1', MOST_HIDDEN = 100;
window.studioHidden = new Set((() => {
  try { return JSON.parse(localStorage.getItem(HIDDEN)).map(String); } catch { return []; }
})());
window.studioSwitch = what => {
  const hidden = window.studioHidden;
  if (!hidden.delete(what)) hidden.add(what);
  try {
    localStorage.setItem(HIDDEN, JSON.stringify([...hidden].slice(-MOST_HIDDEN)));
  } catch { /* storage is full or forbidden: the switches last until the next reload */ }
  document.dispatchEvent(new CustomEvent('studio-hidden'));
};
const studioSwitchOf = entry => entry.run || entry.line;
// Only what has a switch in the chart's own legend can be hidden there: a run alone has none.
const studioIsHidden = (what, figure) => window.studioHidden.has(what)
  && (figure.legend || []).some(entry => studioSwitchOf(entry) === what);
window.studioRanges = {}; // a figure's range_of -> the horizontal range of all its charts

// plotly.js is 4.8 MB: it is loaded once, when the page is shown and the browser is idle.
// Its address is in the page's head.
function studioPlotlyLoaded() {
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

// Replaces "--accent" by its colour in the current theme, and "--run-1/.14" by a colour that lets
// the background through; anywhere in the figure but in names, which are foreign text.
function studioThemed(value, css, key = '') {
  if (typeof value === 'string') {
    if (!value.startsWith('--') || key === 'name' || key === 'meta') return value;
    const [name, opacity] = value.split('/');
    const colour = css.getPropertyValue(name).trim();
    if (!opacity) return colour;
    const parts = [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
    return `rgba(${[...parts, opacity]})`;
  }
  if (Array.isArray(value)) {
    const numbers = value.length && typeof value[0] === 'number';
    return numbers ? value : value.map(item => studioThemed(item, css, key));
  }
  if (value && typeof value === 'object') {
    return Object.fromEntries(
      Object.entries(value).map(([k, v]) => [k, studioThemed(v, css, k)]));
  }
  return value;
}

function studioChartLayout(figure, css, whole) {
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
  const own = studioThemed(figure.layout, css);
  const outside = figure.clipped && !whole;
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
    yaxis: merge(yaxis, {...own.yaxis, ...(outside ? {range: figure.clipped.range} : {})}),
    ...(own.yaxis2 ? {yaxis2: merge(yaxis2, own.yaxis2)} : {}),
  };
}

// The range that is drawn without zoom; undefined where Plotly chooses it.
function studioChartRanges(figure, whole) {
  const y = figure.clipped && !whole ? figure.clipped.range : figure.layout.yaxis.range;
  return {x: figure.layout.xaxis.range, y};
}

window.studioChart = (element, props, trigger, watch) => {
  const plot = element.querySelector('.plot');
  const unzoom = element.querySelector('.unzoom');
  const chart = {element, plot, props, trigger, draw, drawn: false, css: () => getComputedStyle(plot)};
  let hovering = false, dragging = false, waiting = false, following = false;
  let stale = false; // the picture is older than props.value, because the chart was hidden
  let rangeOf = ''; // whose horizontal range the picture has
  let whole = false; // whether outliers are drawn too

  function clipped(figure) {
    const line = element.querySelector('.curve-clipped');
    const says = figure.clipped?.says || '';
    line.hidden = !figure.clipped;
    line.querySelector('span').textContent = whole ? says.replace('not drawn', 'far off') : says;
    line.querySelector('button').textContent = whole ? 'Leave them out' : 'Show them';
  }

  function texts(figure) {
    element.querySelector('.curve-title').textContent = figure.title;
    element.querySelector('.curve-now').textContent = figure.now || '';
    const note = element.querySelector('.curve-note');
    note.title = note.textContent = figure.note || ''; // a long one is cut
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
    studioChartLegend(chart, figure);
    if (!figure.traces.length) {
      if (chart.drawn) { window.Plotly.purge(plot); chart.drawn = false; }
      return;
    }
    stale = !plot.clientWidth; // in a hidden tab; the ResizeObserver below draws it later
    if (stale) return;
    // If the server is away, the next value tries again.
    try { await studioPlotlyLoaded(); } catch { return; }
    const css = chart.css();
    const traces = studioThemed(figure.traces, css).map(
      t => studioIsHidden(t.legendgroup, figure) ? {...t, visible: false} : t);
    const options = {
      displayModeBar: false, responsive: false, doubleClick: 'reset', showTips: false,
    };
    await window.Plotly.react(plot, traces, studioChartLayout(figure, css, whole), options);
    if (!chart.drawn) listen();
    chart.drawn = true;
    if (rangeOf !== figure.range_of) {
      rangeOf = figure.range_of;
      if (rangeOf in window.studioRanges) follow(window.studioRanges[rangeOf]);
    }
  }

  function listen() {
    plot.on('plotly_click', event => {
      const point = event.points.find(p => typeof p.customdata === 'number');
      if (point) trigger('pick', {step: point.customdata});
    });
    plot.on('plotly_relayout', change => {
      unzoom.hidden = !zoomed();
      if (!following && Object.keys(change).some(key => key.startsWith('xaxis.'))) share();
    });
    plot.on('plotly_hover', () => { hovering = true; });
    plot.on('plotly_unhover', () => { hovering = false; if (waiting) refresh(); });
  }

  // The charts of one run have one horizontal range: each tells the others.
  function share() {
    const group = props.value.range_of, axis = plot.layout.xaxis;
    if (!group) return;
    const range = zoomed('x') ? [...axis.range] : null;
    window.studioRanges[group] = range;
    document.dispatchEvent(new CustomEvent('studio-range', {detail: {group, range, plot}}));
  }
  async function follow(range) {
    following = true;
    await window.Plotly.relayout(
      plot, range ? {'xaxis.range': [...range]} : {'xaxis.autorange': true});
    following = false;
  }
  function heard({detail}) {
    if (!element.isConnected) document.removeEventListener('studio-range', heard);
    else if (chart.drawn && detail.plot !== plot && detail.group === props.value.range_of) {
      if (plot.clientWidth) follow(detail.range); else { rangeOf = ''; stale = true; }
    }
  }
  document.addEventListener('studio-range', heard);

  // A redraw removes the hover label and interrupts a drag. So it waits until the drag has ended
  // and the pointer has left, but for a resting pointer at most four seconds: the curve is live.
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
    const own = studioChartRanges(props.value, whole), change = {};
    for (const axis of ['x', 'y']) {
      if (own[axis]) change[`${axis}axis.range`] = [...own[axis]];
      else change[`${axis}axis.autorange`] = true;
    }
    window.Plotly.relayout(plot, change);
  });
  function zoomed(axes = 'xy') {
    const own = studioChartRanges(props.value, whole);
    return [...axes].some(name => {
      const range = own[name], now = plot.layout[`${name}axis`];
      if (!range) return now.autorange === false;
      const width = Math.abs(range[1] - range[0]);
      return now.range.some((v, i) => Math.abs(v - range[i]) > 1e-6 * width);
    });
  }

  element.querySelector('.whole').addEventListener('click', () => { whole = !whole; draw(); });
  studioChartReading(chart);
  studioChartFiles(chart);
  watch('value', refresh);
  new ResizeObserver(() => {
    if (!plot.clientWidth) return;
    if (stale || !chart.drawn) draw();
    if (chart.drawn) window.Plotly.Plots.resize(plot);
  }).observe(plot);
  // Gradio marks dark mode by a class on the body.
  new MutationObserver(() => { if (chart.drawn) draw(); })
    .observe(document.body, {attributes: true, attributeFilter: ['class']});
  draw();
};
