"""What runs in the browser: small scripts for the pieces that Gradio has no component for.

Each is the body of a function that gets `element`, its HTML component, and `trigger(event, data)`, which calls the
server; it runs once, so whatever is drawn anew later is found by delegation or by an observer.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


def sent(event: gr.EventData) -> dict[str, Any]:
    """What a script gave to `trigger`; empty where something else called the server, with something else."""
    return event._data if isinstance(event._data, dict) else {}


SET_OPACITY = """(percent) => {
  const root = document.documentElement.style;
  root.setProperty('--opacity', percent / 100);
  root.setProperty('--scale', percent ? 'inline-block' : 'none');
  root.setProperty('--hidden', percent ? 'none' : 'inline');
}"""
# The middle of what is seen stays in the middle.
SET_ZOOM = """(times) => {
  const film = document.querySelector('#film');
  const x = (film.scrollLeft + film.clientWidth / 2) / film.scrollWidth;
  const y = (film.scrollTop + film.clientHeight / 2) / film.scrollHeight;
  document.documentElement.style.setProperty('--zoom', times);
  film.scrollLeft = x * film.scrollWidth - film.clientWidth / 2;
  film.scrollTop = y * film.scrollHeight - film.clientHeight / 2;
}"""
# A zoomed film is moved by dragging it; touch and keyboard scroll it without help. Dragging with the right button, or
# with Shift held, changes the window as workstations do: across its width, up and down its level. A file that is
# dropped beside the drop zone, most likely on the reading area, is read too: else a browser would show it instead.
# While an earlier file is sent, Gradio's drop zone takes no other: the last one that was dropped waits for its turn.
FILM = """
const film = element.closest('#film') || element;
film.tabIndex = 0;
film.setAttribute('role', 'region');
film.setAttribute('aria-label', 'Reading area');
window.addEventListener('dragover', (event) => event.preventDefault());
const input = (zone) => document.querySelector(`${zone} input[type=file]`);
const give = (taker, files) => {
  taker.files = files;
  taker.dispatchEvent(new Event('change', {bubbles: true}));
};
let waiting = null;
const hand = () => {
  if (!waiting || !input('#upload')) return;
  const files = waiting;
  waiting = null;
  give(input('#upload'), files);
};
new MutationObserver(hand).observe(document.body, {childList: true, subtree: true});
window.addEventListener('drop', (event) => {
  if (event.target.closest('#upload, #batch-files')?.querySelector('input[type=file]')) return;
  event.preventDefault();
  if (!event.dataTransfer.files.length) return;
  if (document.querySelector('#batch-files')?.offsetParent) {
    if (input('#batch-files')) give(input('#batch-files'), event.dataTransfer.files);
    return;
  }
  const kept = new DataTransfer();
  kept.items.add(event.dataTransfer.files[0]);
  waiting = kept.files;
  hand();
});
const slider = (name) => document.querySelector(`#${name} input[type=number]`);
const slide = (name, value) => {
  const input = slider(name);
  const kept = Math.min(Math.max(value, Number(input.min)), Number(input.max));
  input.value = Math.round(kept * 2) / 2;
  input.dispatchEvent(new Event('input', {bubbles: true}));
};
film.addEventListener('contextmenu', (event) => event.preventDefault());
film.addEventListener('pointerdown', (down) => {
  if (down.pointerType !== 'mouse' || down.button === 1) return;
  const windowing = down.button === 2 || down.shiftKey;
  if (windowing && !document.querySelector('#film img.film')) return;
  const left = film.scrollLeft + down.clientX, top = film.scrollTop + down.clientY;
  const level = Number(slider('level')?.value), width = Number(slider('width')?.value);
  const move = (event) => {
    if (windowing) {
      slide('width', width + (event.clientX - down.clientX) / 4);
      slide('level', level + (event.clientY - down.clientY) / 4);
    } else {
      film.scrollLeft = left - event.clientX;
      film.scrollTop = top - event.clientY;
    }
  };
  window.addEventListener('pointermove', move);
  window.addEventListener('pointerup', () => window.removeEventListener('pointermove', move), {once: true});
});
"""
# A row of the table speaks for its finding; the rows are sorted here, and stay so when the table is drawn anew.
FINDINGS = """
const order = {key: 'probability', up: false};
const value = (row) => order.key === 'title' ? row.dataset.title : Number(row.dataset[order.key]);
const sort = () => {
  const body = element.querySelector('table.findings tbody');
  if (!body) return;
  const rows = [...body.rows], sign = order.up ? 1 : -1;
  const wanted = [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    return sign * (x < y ? -1 : x > y ? 1 : 0) || Number(b.dataset.probability) - Number(a.dataset.probability);
  });
  if (wanted.some((row, place) => row !== rows[place])) body.append(...wanted);
  for (const button of element.querySelectorAll('button[data-sort]')) {
    const says = button.dataset.sort !== order.key ? 'none' : order.up ? 'ascending' : 'descending';
    if (button.parentElement.getAttribute('aria-sort') !== says) button.parentElement.setAttribute('aria-sort', says);
  }
};
const drawn = {childList: true, subtree: true, attributeFilter: ['data-probability', 'data-name']};
new MutationObserver(sort).observe(element, drawn);
element.addEventListener('click', (event) => {
  const head = event.target.closest('button[data-sort]');
  if (head) {
    const key = head.dataset.sort;
    order.up = order.key === key ? !order.up : key === 'title' || key === 'call';
    order.key = key;
    sort();
  }
  const row = event.target.closest('button[data-finding]');
  if (row) trigger('select', {finding: row.dataset.finding});
  const said = event.target.closest('button[data-opinion]');
  if (said) trigger('like', {finding: said.dataset.on, opinion: said.dataset.opinion});
});
"""
CASES = """
element.addEventListener('click', (event) => {
  const pin = event.target.closest('button[data-pin]');
  if (pin) trigger('select', {pin: Number(pin.dataset.pin)});
});
"""
PINNED = """
element.addEventListener('click', (event) => {
  const pin = event.target.closest('button[data-unpin]');
  if (pin) trigger('select', {unpin: Number(pin.dataset.unpin)});
});
"""
# A file that was made for this visitor goes from the answer into a download; no server keeps it under an address.
SAVE = """
const save = () => {
  const link = element.querySelector('a[data-content]');
  if (!link) return;
  const bytes = Uint8Array.from(atob(link.dataset.content), (letter) => letter.charCodeAt(0));
  link.removeAttribute('data-content');
  link.href = URL.createObjectURL(new Blob([bytes], {type: link.type}));
  if (!link.hasAttribute('data-wait')) link.click();
};
// Gradio patches the old link instead of putting a new one.
new MutationObserver(save).observe(element, {childList: true, subtree: true, attributeFilter: ['data-content']});
"""
# The map is one stop of the Tab key: arrows go to the next point that way, Enter opens it.
MAP = """
const at = (point) => [Number(point.getAttribute('cx')), Number(point.getAttribute('cy'))];
let chosen = null;
const choose = (point) => {
  element.querySelectorAll('.chosen').forEach((old) => old.classList.remove('chosen'));
  chosen = point;
  point.classList.add('chosen');
  point.parentElement.append(point);
  const said = element.querySelector('.said');
  if (said) said.textContent = point.dataset.label;
};
const open = (point) => { choose(point); trigger('select', {point: Number(point.dataset.point)}); };
element.addEventListener('click', (event) => {
  const point = event.target.closest('circle[data-point]');
  if (point) open(point);
});
element.addEventListener('pointerover', (event) => {
  const point = event.target.closest('circle[data-point]'), said = element.querySelector('.said');
  if (point && said) said.textContent = point.dataset.label;
});
element.addEventListener('keydown', (event) => {
  if (!event.target.closest('.map')) return;
  const points = [...element.querySelectorAll('circle[data-point]')];
  if (!points.length) return;
  if (chosen && !chosen.isConnected) chosen = null;
  if (event.key === 'Enter' && chosen) { open(chosen); return; }
  const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!way) return;
  event.preventDefault();
  if (!chosen) { choose(points[0]); return; }
  const [x, y] = at(chosen);
  let best = null, least = Infinity;
  for (const point of points) {
    const [u, v] = at(point), along = (u - x) * way[0] + (v - y) * way[1];
    const aside = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
    if (along > 1e-6 && along + 3 * aside < least) { best = point; least = along + 3 * aside; }
  }
  if (best) choose(best);
});
"""
