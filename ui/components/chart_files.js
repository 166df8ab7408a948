// Downloads of a curve: the picture as it is zoomed, and the drawn points as a table. Each x is a
// row, each line a column. chart: made by studioChart.
function studioChartFiles(chart) {
  const {element, plot, props} = chart;
  const name = trace => studioLineName(trace, props.value);
  function save(address, kind) {
    const link = document.createElement('a');
    link.href = address;
    link.download = `${props.value.title.toLowerCase().replace(/[^a-z0-9]+/g, '-')}.${kind}`;
    link.click();
  }
  async function png() {
    const layout = {
      ...plot.layout,
      paper_bgcolor: chart.css().getPropertyValue('--card').trim(),
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
      add(name(t), t.x, t.y);
      if (!t.error_y) continue;
      add(`${name(t)}, low`, t.x, t.y.map((y, i) => y - t.error_y.arrayminus[i]));
      add(`${name(t)}, high`, t.x, t.y.map((y, i) => y + t.error_y.array[i]));
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
    if (chart.drawn && kind) (kind === 'png' ? png : csv)();
  });
}
