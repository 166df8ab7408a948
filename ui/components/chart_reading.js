// Reading a curve: by keyboard, large, its legend with a switch for each run, what its metric means.
// chart: made by studioChart.

// The name of a line as plain text. The names of traces are escaped, and a lone one has none.
const studioLineName = (trace, figure) => trace.meta || (trace.name || figure.title)
  .replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&amp;', '&');

function studioChartReading(chart) {
  const {element, plot, props} = chart;

  // Arrows move from point to point, Home and End jump, Enter opens the groups of a point as a
  // click does.
  let at = -1; // index of the point that the arrow keys reached
  const walkable = () => (plot.data || []).find(t => Array.isArray(t.customdata)
    && t.hoverinfo !== 'skip' && t.opacity === undefined && t.visible !== false);
  plot.addEventListener('keydown', event => {
    const trace = chart.drawn && walkable();
    if (!trace || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = trace.x.length - 1;
    if (event.key === 'Enter' && at >= 0 && at <= last) {
      event.preventDefault();
      chart.trigger('pick', {step: trace.customdata[at]});
      return;
    }
    const next = {
      ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1), Home: 0, End: last,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    at = next;
    const x = trace.x[at];
    window.Plotly.Fx.hover(plot, [{curveNumber: plot.data.indexOf(trace), pointNumber: at}]);
    const values = plot.data.filter(t => t.hoverinfo !== 'skip' && t.x.includes(x)).map(t => {
      const i = t.x.indexOf(x);
      return `${studioLineName(t, props.value)} ${t.text?.[i] ?? t.y[i] ?? 'nothing'}`;
    });
    element.querySelector('.curve-at').textContent =
      `${props.value.axis} ${x}: ${values.join(', ')}`;
  });
  plot.addEventListener('blur', () => {
    if (chart.drawn && at >= 0) window.Plotly.Fx.unhover(plot);
  });

  // A press on the legend hides a line, or a run in every chart, or shows it again.
  element.querySelector('.legend').addEventListener('click', event => {
    const what = event.target.closest('[data-switch]')?.dataset.switch;
    if (what) window.studioSwitch(what);
  });
  document.addEventListener('studio-hidden', function redraw() {
    if (element.isConnected) chart.draw();
    else document.removeEventListener('studio-hidden', redraw);
  });

  // A press on the title says what the metric means, with a link to its entry in the glossary.
  const title = element.querySelector('.curve-title');
  const meaning = element.querySelector('.curve-meaning');
  function explain(open) {
    meaning.hidden = !open;
    title.setAttribute('aria-expanded', String(open));
    if (!open) return;
    const {help, unit, reading, link} = props.value.definition;
    const [what, how, measured, entry] = meaning.children;
    what.textContent = help || props.value.note;
    how.textContent = reading || '';
    measured.textContent = unit ? `Unit: ${unit}` : '';
    entry.hidden = !link;
    entry.href = link || '';
  }
  title.addEventListener('click', () => explain(meaning.hidden));
  meaning.querySelector('a').addEventListener('click', () => {
    explain(false);
    if (dialog.open) dialog.close(); // the entry is on another tab
  });
  element.addEventListener('keydown', event => {
    if (event.key !== 'Escape' || meaning.hidden) return;
    event.preventDefault(); // the large view stays open
    explain(false);
    title.focus();
  });
  element.addEventListener('focusout', event => {
    if (!meaning.hidden && !meaning.parentElement.contains(event.relatedTarget)) explain(false);
  });

  // The same node moves into a dialog and back, so it keeps its zoom. Escape closes the dialog.
  const figure = element.querySelector('figure'), dialog = element.querySelector('dialog');
  const enlarge = element.querySelector('.enlarge');
  enlarge.addEventListener('click', () => {
    if (dialog.open) { dialog.close(); return; }
    dialog.setAttribute('aria-label', props.value.title);
    dialog.append(figure);
    dialog.showModal();
    enlarge.focus();
    label();
    chart.draw();
  });
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => {
    dialog.before(figure);
    label();
    enlarge.focus();
    chart.draw();
  });
  function label() {
    const what = dialog.open ? 'Close the large view' : 'Open large';
    enlarge.setAttribute('aria-label', what);
    enlarge.title = what;
    enlarge.textContent = dialog.open ? '✕' : '⤢';
  }
  label();
}

// The legend: names as text, never as HTML, because a run's name is foreign. Runs and lines are
// switches.
function studioChartLegend(chart, figure) {
  const css = chart.css();
  const items = (figure.traces.length ? figure.legend || [] : []).map(entry => {
    const what = studioSwitchOf(entry);
    const item = document.createElement(what ? 'button' : 'span');
    const mark = document.createElement('i'), name = document.createElement('span');
    mark.className = `mark ${entry.dash || 'solid'}`;
    mark.style.setProperty('--mark', studioThemed(entry.colour, css));
    name.className = 'legend-name';
    name.textContent = entry.name;
    item.append(mark, name);
    if (entry.value) {
      const value = document.createElement('b');
      value.textContent = entry.value;
      item.append(value);
    }
    item.title = entry.title || entry.name;
    if (what) {
      item.type = 'button';
      item.dataset.switch = what;
      const shown = !window.studioHidden.has(what);
      item.setAttribute('aria-pressed', String(shown));
      const which = entry.run ? 'this run in all charts' : 'this line';
      item.title = `${entry.name}: ${shown ? 'hide' : 'show'} ${which}`;
    }
    return item;
  });
  const legend = chart.element.querySelector('.legend');
  const focused = legend.contains(document.activeElement) && document.activeElement.dataset.switch;
  legend.replaceChildren(...items);
  if (focused) items.find(item => item.dataset.switch === focused)?.focus();
}
