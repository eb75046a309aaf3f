// Uploads a plugin: chosen, or dropped anywhere on the page.

import { bytes, el, facts } from './dom.js';
import { problem } from './evaluator.js';
import { Problem, evaluatorPath, send } from './server.js';

// The file that was dropped, until the form has it.
let dropped = null;

// A name that the server takes, of a file's.
const nameOf = (file) => file.name.replace(/\.wasm$/i, '').replace(/[^A-Za-z0-9._/-]+/g, '-').replace(/\.{2,}/g, '.').slice(0, 128);

export function catchDrops() {
  const hint = document.getElementById('drop-hint');
  const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
  let depth = 0;
  const step = (by) => {
    depth = Math.max(0, depth + by);
    hint.hidden = depth === 0;
  };
  addEventListener('dragenter', (event) => hasFile(event) && step(1));
  addEventListener('dragleave', (event) => hasFile(event) && step(-1));
  addEventListener('dragover', (event) => hasFile(event) && event.preventDefault());
  addEventListener('drop', (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    step(-depth);
    dropped = event.dataTransfer.files[0] ?? null;
    if (location.hash.startsWith('#/upload')) dispatchEvent(new Event('hashchange'));
    else location.hash = '#/upload';
  });
}

export function upload({ parameters }) {
  let file = dropped;
  dropped = null;
  const named = parameters.get('name');
  const chosen = el('p', { class: 'help' });
  const picker = el('input', { id: 'file', type: 'file', accept: '.wasm,application/wasm', onchange: () => choose(picker.files[0] ?? null) });
  const name = el('input', { id: 'name', required: true, value: named ?? '', maxlength: 128, autocomplete: 'off', spellcheck: 'false', 'aria-describedby': 'name-help' });
  const entry = el('input', { id: 'upload-entry', autocomplete: 'off', spellcheck: 'false', placeholder: 'found by the server' });
  const isolation = el('select', { id: 'isolation' }, [['', "the server's default"], ['fresh', 'fresh'], ['reuse', 'reuse']].map(([value, text]) => el('option', { value }, text)));
  const debug = el('input', { id: 'debug', type: 'checkbox' });
  const button = el('button', { class: 'primary' }, 'Upload');
  const answer = el('div', { class: 'answer', 'aria-live': 'polite' });

  function choose(one) {
    file = one;
    chosen.textContent = file ? `${file.name}, ${bytes(file.size)}` : 'No file is chosen. You can also drop one anywhere on this page.';
    if (file && !named) name.value = nameOf(file);
  }

  async function put(event) {
    event.preventDefault();
    if (!file) {
      answer.replaceChildren(el('p', { class: 'error' }, 'Choose a file first.'));
      return picker.focus();
    }
    if (!name.value) {
      answer.replaceChildren(el('p', { class: 'error' }, 'Give it a name first.'));
      return name.focus();
    }
    button.disabled = true;
    answer.replaceChildren(el('p', {}, 'Uploading and validating …'));
    try {
      const query = new URLSearchParams([['entry_point', entry.value], ['isolation', isolation.value], ['debug', debug.checked ? 'true' : '']].filter(([, value]) => value));
      const path = evaluatorPath(name.value) + (query.size > 0 ? `?${query}` : '');
      const response = await send(path, { method: 'PUT', headers: { 'content-type': 'application/wasm' }, body: file });
      if (!response.ok) throw await Problem.of(response);
      const made = await response.json();
      answer.replaceChildren(
        el('p', {}, el('code', { class: 'good' }, String(response.status)), response.status === 201 ? ' A new evaluator: ' : ' Replaced: ',
          el('a', { href: `#/evaluator/${encodeURIComponent(made.name)}` }, made.name)),
        facts([['Entry point', made.entry_point], ['Size', bytes(made.size_bytes)], ['Revision', String(made.revision)], ['Digest', el('code', { class: 'digest' }, made.digest)]]));
    } catch (error) {
      answer.replaceChildren(el('p', {}, 'The server refuses it:'), problem(error));
    }
    button.disabled = false;
  }

  choose(file);
  const element = el('div', {}, el('h1', {}, 'Upload'),
    el('section', { class: 'card narrow', 'aria-label': 'Upload a plugin' },
      el('form', { onsubmit: put, novalidate: true },
        el('p', {}, el('label', { for: 'file' }, 'Plugin, a WebAssembly binary'), picker), chosen,
        el('p', {}, el('label', { for: 'name' }, 'Name'), name, el('span', { id: 'name-help', class: 'help' }, 'Letters, digits and . _ - /. What stands before the first / is the tenant.')),
        el('p', {}, el('label', { for: 'upload-entry' }, 'Entry point'), entry),
        el('p', {}, el('label', { for: 'isolation' }, 'Isolation'), isolation),
        el('p', { class: 'check' }, debug, el('label', { for: 'debug' }, 'Debug: callers see stack and output of a failure, and what a call used')),
        el('p', {}, button)), answer));
  return { element, title: 'Upload' };
}
