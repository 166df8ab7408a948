// The rubric as an editable list.
// props.value: [{name, check, weight, params, outcome}], weight and params as typed, so that wrong
// input is kept. props.checks: check -> help.
// Elements are created here and filled through properties: no text is parsed as HTML.
const opened = new Set(); // indices of the criteria whose details are shown

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes('-')) node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children);
  return node;
}

function rows() { return Array.isArray(props.value) ? props.value : []; }

// The value is replaced by a new list: Gradio ignores a change of the list that it holds.
function edit(change, rebuild = false) {
  const next = rows().map(row => ({...row}));
  change(next);
  props.value = next;
  if (rebuild) build();
  trigger('edit', {});
}

function field(i, key, label, more = {}) {
  return make('input', {
    type: 'text',
    value: String(rows()[i][key] ?? ''),
    className: key,
    'aria-label': `Criterion ${i + 1} ${label}`,
    spellcheck: false,
    autocomplete: 'off',
    oninput: event => edit(next => { next[i][key] = event.target.value; }),
    ...more,
  });
}

function checkSelect(row, i) {
  const names = [...new Set([...Object.keys(props.checks || {}), row.check])];
  const options = names.map(
    name => make('option', {value: name, textContent: name, selected: name === row.check}));
  return make('select', {
    'aria-label': `Criterion ${i + 1} check`,
    onchange: event => edit(next => {
      next[i].check = event.target.value;
      next[i].params = '{}';
    }, true),
  }, ...options);
}

function details(row, i) {
  const outcome = make('input', {
    type: 'checkbox',
    checked: !!row.outcome,
    onchange: event => edit(next => { next[i].outcome = event.target.checked; }),
  });
  const remove = make('button', {
    type: 'button',
    className: 'quiet',
    textContent: 'Remove',
    'aria-label': `Remove criterion ${i + 1}`,
    onclick: () => { opened.clear(); edit(next => next.splice(i, 1), true); },
  });
  return make('div', {className: 'more', hidden: !opened.has(i)},
    make('label', {}, 'Check ', checkSelect(row, i)),
    make('label', {}, 'Parameters (JSON) ', field(i, 'params', 'parameters')),
    make('label', {className: 'tick'}, outcome, ' Decides whether a completion is right'),
    remove);
}

function weightSlider(row, i, weight) {
  const value = Number(row.weight) || 0;
  const slider = make('input', {
    type: 'range',
    className: 'slide',
    min: 0,
    max: Math.max(2, 2 * value),
    step: 0.05,
    value,
    'aria-label': `Criterion ${i + 1} weight, slider`,
    oninput: event => {
      weight.value = event.target.value;
      edit(next => { next[i].weight = event.target.value; });
    },
  });
  weight.addEventListener('input', () => { slider.value = Number(weight.value) || 0; });
  return slider;
}

function criterion(row, i) {
  const text = (props.checks || {})[row.check] || 'There is no such check.';
  const help = make('p', {className: 'help', textContent: text});
  const body = details(row, i);
  const weight = field(i, 'weight', 'weight', {inputMode: 'decimal'});
  const more = make('button', {
    type: 'button',
    className: 'icon',
    textContent: '⋯',
    'aria-label': `Criterion ${i + 1}: check and parameters`,
    'aria-expanded': String(opened.has(i)),
    onclick: () => {
      if (opened.has(i)) opened.delete(i);
      else opened.add(i);
      body.hidden = !opened.has(i);
      more.setAttribute('aria-expanded', String(opened.has(i)));
    },
  });
  const times = make('span', {className: 'by', textContent: '×', 'aria-hidden': 'true'});
  return make('div',
    {className: 'criterion', role: 'group', 'aria-label': `Criterion ${i + 1}`},
    make('div', {className: 'line'},
      field(i, 'name', 'name'), weightSlider(row, i, weight), times, weight, more),
    help, body);
}

function add() {
  const check = Object.keys(props.checks || {})[0] || '';
  const taken = new Set(rows().map(row => row.name));
  let name = 'new', n = 2;
  while (taken.has(name)) name = `new_${n++}`;
  opened.add(rows().length);
  edit(next => next.push({name, check, weight: '1', params: '{}', outcome: false}), true);
}

function build() {
  const button = make('button',
    {type: 'button', className: 'quiet', textContent: 'Add criterion', onclick: add});
  element.querySelector('.criteria').replaceChildren(...rows().map(criterion), button);
}

watch('value', () => { opened.clear(); build(); });
build();
