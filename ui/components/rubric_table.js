// The rubric as an editable list. props.value: [{name, check, weight, params, outcome}], with weight and params as typed, so that wrong
// input is never lost; props.checks: check -> help. Every element is made here and filled by its properties: nothing is parsed as HTML.
const opened = new Set();

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) key.includes('-') ? node.setAttribute(key, value) : (node[key] = value);
  node.append(...children);
  return node;
}

function rows() { return Array.isArray(props.value) ? props.value : []; }

// A new list each time: Gradio sees a change only in a value that is not the one it has.
function edit(change, rebuild = false) {
  const next = rows().map(row => ({...row}));
  change(next);
  props.value = next;
  if (rebuild) build();
  trigger('edit', {});
}

function field(i, key, label, more = {}) {
  return make('input', {
    type: 'text', value: String(rows()[i][key] ?? ''), className: key, 'aria-label': `Criterion ${i + 1} ${label}`, spellcheck: false, autocomplete: 'off',
    oninput: event => edit(next => { next[i][key] = event.target.value; }), ...more,
  });
}

function criterion(row, i) {
  const help = make('p', {className: 'help', textContent: (props.checks || {})[row.check] || 'There is no such check.'});
  const body = make('div', {className: 'more', hidden: !opened.has(i)});
  const select = make('select', {
    'aria-label': `Criterion ${i + 1} check`, onchange: event => edit(next => { next[i].check = event.target.value; next[i].params = '{}'; }, true),
  }, ...[...new Set([...Object.keys(props.checks || {}), row.check])].map(name => make('option', {value: name, textContent: name, selected: name === row.check})));
  const outcome = make('input', {type: 'checkbox', checked: !!row.outcome, onchange: event => edit(next => { next[i].outcome = event.target.checked; })});
  body.append(
    make('label', {}, 'Check ', select),
    make('label', {}, 'Parameters (JSON) ', field(i, 'params', 'parameters')),
    make('label', {className: 'tick'}, outcome, ' Decides whether a completion is right'),
    make('button', {type: 'button', className: 'quiet', textContent: 'Remove', 'aria-label': `Remove criterion ${i + 1}`,
      onclick: () => { opened.clear(); edit(next => next.splice(i, 1), true); }}),
  );
  const weight = field(i, 'weight', 'weight', {inputMode: 'decimal'});
  const at = Number(row.weight) || 0;
  const slider = make('input', {type: 'range', className: 'slide', min: 0, max: Math.max(2, 2 * at), step: 0.05, value: at, 'aria-label': `Criterion ${i + 1} weight, slider`,
    oninput: event => { weight.value = event.target.value; edit(next => { next[i].weight = event.target.value; }); }});
  weight.addEventListener('input', () => { slider.value = Number(weight.value) || 0; });
  const more = make('button', {
    type: 'button', className: 'icon', textContent: '⋯', 'aria-label': `Criterion ${i + 1}: check and parameters`, 'aria-expanded': String(opened.has(i)),
    onclick: () => { opened.has(i) ? opened.delete(i) : opened.add(i); body.hidden = !opened.has(i); more.setAttribute('aria-expanded', String(opened.has(i))); },
  });
  return make('div', {className: 'criterion', role: 'group', 'aria-label': `Criterion ${i + 1}`},
    make('div', {className: 'line'}, field(i, 'name', 'name'), make('span', {className: 'by', textContent: '×', 'aria-hidden': 'true'}),
      weight, more), slider, help, body);
}

function build() {
  const add = make('button', {type: 'button', className: 'quiet', textContent: 'Add criterion', onclick: () => {
    const check = Object.keys(props.checks || {})[0] || '';
    const taken = new Set(rows().map(row => row.name));
    let name = 'new', n = 2;
    while (taken.has(name)) name = `new_${n++}`;
    opened.add(rows().length);
    edit(next => next.push({name, check, weight: '1', params: '{}', outcome: false}), true);
  }});
  element.querySelector('.criteria').replaceChildren(...rows().map(criterion), add);
}

watch('value', () => { opened.clear(); build(); });
build();
