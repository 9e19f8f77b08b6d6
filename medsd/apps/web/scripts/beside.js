// A case beside the image: both under the window of the reading area, with one zoom and one place. The image is the one that
// the reading area holds; the case is its small picture until every pixel of it has come (#beside), if the server has it.
const run = () => {
const area = document.querySelector('#stage'), pixels = document.querySelector('#beside');
const at = {times: 1, x: 0, y: 0}; // x and y in widths of a pane
let dialog = null, key = '', pictures = [], painted = [], frame = 0, stepping = false;
let last = null; // every pixel of the last case that had some: the page takes the same answer only once

const small = async (image) => {
  await image.decode();
  const [width, height] = [image.naturalWidth, image.naturalHeight], canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const {data} = context.getImageData(0, 0, width, height);
  const values = Uint16Array.from({length: width * height}, (_, i) => Math.round(data[4 * i] * 4095 / 255));
  return {width, height, values, pixels: new ImageData(width, height)};
};
const panes = () => [...dialog.querySelectorAll('.pane')];
const draw = () => {
  frame = 0;
  if (!dialog) return;
  const {view} = area.viewer, look = `${view.level} ${view.width} ${view.inverted}`;
  panes().forEach((pane, place) => {
    const picture = pictures[place], put = (name, value) => pane.style.setProperty(name, value);
    pane.classList.toggle('drawn', Boolean(picture));
    if (!picture) return;
    const was = painted[place];
    if (was?.picture !== picture || was.look !== look) shade(pane.querySelector('canvas'), picture, view);
    painted[place] = {picture, look};
    const scale = Math.min(pane.clientWidth / picture.width, pane.clientHeight / picture.height);
    put('--w', `${picture.width * scale}px`);
    put('--h', `${picture.height * scale}px`);
    put('--x', `${at.x * pane.clientWidth}px`);
    put('--y', `${at.y * pane.clientWidth}px`);
    put('--zoom', at.times);
  });
};
const redraw = () => { frame = frame || requestAnimationFrame(draw); };
const wheel = (event) => {
  if (!event.target.closest('.pane')) return;
  event.preventDefault();
  zoom(at.times * Math.exp(-event.deltaY / 400), from(event));
};
const open = async (opened) => {
  dialog = opened;
  // At the dialog itself: Chromium drops the wheel over a popover that only an element around it listens to.
  opened.addEventListener('wheel', wheel, {passive: false});
  key = opened.dataset.case;
  if (!stepping) Object.assign(at, {times: 1, x: 0, y: 0});
  stepping = false;
  painted = [];
  pictures = panes().map((pane) => pane.hasAttribute('data-own') ? area.viewer.picture() : null);
  const place = panes().length - 1;
  if (last?.key === key) pictures[place] = last;
  else trigger('play', {beside: key});
  redraw();
  const image = opened.querySelector('.pane:not([data-own]) img.small');
  const picture = image && await small(image);
  if (dialog === opened && picture && !pictures[place]) { pictures[place] = picture; redraw(); }
};
const close = (closed) => {
  if (dialog !== closed) return;
  dialog = null;
  pictures = [];
  area.viewer.show();
};
// Popovers say that they open and close by an event that does not bubble.
element.addEventListener('toggle', (event) => {
  if (event.target.matches('.pair')) (event.newState === 'open' ? open : close)(event.target);
}, true);
new MutationObserver(async () => {
  const source = pixels.querySelector('[data-greys]');
  if (!source) return;
  last = await take(source);
  if (dialog && last?.key === key) { pictures[panes().length - 1] = last; redraw(); }
}).observe(pixels, {childList: true, subtree: true, attributeFilter: ['data-greys']});
// Gradio patches what is drawn anew: a dialog that is open may become that of another case.
new MutationObserver(() => {
  if (dialog && !dialog.isConnected) close(dialog);
  else if (dialog && dialog.dataset.case !== key) dialog.hidePopover();
}).observe(element, {childList: true, subtree: true, attributeFilter: ['data-case']});

const step = (by) => {
  const dialogs = [...element.querySelectorAll('.pair')], next = dialogs[dialogs.indexOf(dialog) + by];
  if (!next) return;
  stepping = true;
  dialog.hidePopover();
  next.showPopover();
};
const from = (event) => {
  const box = event.target.closest('.pane').getBoundingClientRect();
  return [(event.clientX - box.left - box.width / 2) / box.width, (event.clientY - box.top - box.height / 2) / box.width];
};
const zoom = (times, [x, y] = [0, 0]) => {
  const next = keep(times, 1, 16), ratio = next / at.times;
  Object.assign(at, next === 1 ? {times: 1, x: 0, y: 0} : {times: next, x: x - (x - at.x) * ratio, y: y - (y - at.y) * ratio});
  redraw();
};
element.addEventListener('pointerdown', (down) => {
  const pane = down.target.closest('.pane');
  if (!pane || !dialog) return;
  down.preventDefault();
  pane.setPointerCapture(down.pointerId);
  const begun = {...at}, {view, expose} = area.viewer, look = {...view}, place = from(down), wide = pane.clientWidth;
  const tool = down.button === 2 ? 'zoom' : down.button === 1 || down.pointerType === 'touch' ? 'pan' : 'window';
  const move = (event) => {
    const [dx, dy] = [event.clientX - down.clientX, event.clientY - down.clientY];
    if (tool === 'window') expose(look.level + dy / 400, look.width + dx / 400);
    if (tool === 'pan') Object.assign(at, {x: begun.x + dx / wide, y: begun.y + dy / wide});
    if (tool === 'zoom') zoom(begun.times * Math.exp(-dy / 150), place);
    redraw();
  };
  pane.addEventListener('pointermove', move);
  for (const end of ['pointerup', 'pointercancel']) {
    pane.addEventListener(end, () => pane.removeEventListener('pointermove', move), {once: true});
  }
});
element.addEventListener('contextmenu', (event) => { if (event.target.closest('.pane')) event.preventDefault(); });
element.addEventListener('dblclick', (event) => { if (event.target.closest('.pane')) zoom(1); });
element.addEventListener('click', (event) => {
  const by = event.target.closest('button[data-step]')?.dataset.step;
  if (by && dialog) step(Number(by));
  if (event.target.closest('.pair [data-like]')) dialog?.hidePopover();
});
window.addEventListener('keydown', (event) => {
  if (!dialog || event.ctrlKey || event.metaKey || event.altKey) return;
  const {view, choose} = area.viewer;
  const act = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), '+': () => zoom(at.times * 1.5), '-': () => zoom(at.times / 1.5),
    0: () => zoom(1), i: () => { view.inverted = !view.inverted; }, 1: () => choose(1), 2: () => choose(2), 3: () => choose(3),
    4: () => choose(4),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
  redraw();
});
window.addEventListener('resize', redraw);
};
// The reading area may be drawn after the cases.
const wait = () => {
  if (document.querySelector('#stage')?.viewer && document.querySelector('#beside')) run();
  else requestAnimationFrame(wait);
};
wait();
