// The radiograph as grey values on a canvas: window, zoom, pan, rotation and ruler happen here, without the server.
// #radiograph brings the grey values (or a sentence in their place), #detail those of every pixel once they are wanted,
// #evidence the layer over them. The stage holds all three; its variables place canvas and layer alike.
const run = () => {
const stage = document.querySelector('#stage');
const canvas = stage.querySelector('canvas');
const [line, frame, ruled, values] = ['.ruler line', '.ruler rect', '.ruled', '.values'].map((part) => stage.querySelector(part));
const opacity = element.querySelector('input[name=opacity]');
const MOST = 16; // times its fit
const view = {level: 0.5, width: 1, inverted: false, preset: 1, times: 1, x: 0, y: 0, turns: 0, tool: 'window'};
// The picture, the same with every pixel; in its pixels the ruler's ends, and the corners of the box.
let base = null, detail = null, ends = null, box = null;
let space = false, scrolled = -1000, asked = '';

const load = async () => {
  const source = document.querySelector('#radiograph [data-greys]');
  if (!source && (!base || document.querySelector('#radiograph [data-key]'))) return;
  base = detail = ends = box = null; // nothing of an earlier image stays beside what is new
  show();
  if (!source) return;
  const {key} = source.dataset, next = await take(source);
  if (!source.isConnected || source.dataset.key !== key) return; // another image came meanwhile
  if (!next) {
    source.className = 'empty';
    source.textContent = 'The image did not arrive. Drop it once more.';
    return;
  }
  base = next;
  view.turns = 0;
  if (view.tool === 'box' && !base.boxes) view.tool = 'window';
  opacity.value = 40;
  if (view.preset) choose(view.preset);
  show();
};
const loadDetail = async () => {
  const source = document.querySelector('#detail [data-greys]');
  if (!source) return;
  const next = await take(source);
  if (next && next.key === base?.key) { detail = next; show(); }
};

// --- drawing
let waiting = 0;
const show = () => { waiting = waiting || requestAnimationFrame(draw); };
const drawn = {};
const paint = () => {
  const picture = detail && coarse() ? detail : base;
  const same = drawn.picture === picture && ['level', 'width', 'inverted'].every((part) => drawn[part] === view[part]);
  if (same) return;
  Object.assign(drawn, view, {picture});
  shade(canvas, picture, view);
};
const turned = () => view.turns % 2 === 1;
// CSS pixels of a pixel of the picture at the zoom 1, where all of it is seen.
const fit = () => {
  const [width, height] = turned() ? [base.height, base.width] : [base.width, base.height];
  return Math.min(stage.clientWidth / width, stage.clientHeight / height);
};
// Whether the screen has more pixels for the picture than it has itself.
const coarse = () => view.times * fit() * devicePixelRatio > 1.2;
// In the units of the file where it gives them, else in percent of the greys.
const windowWords = (level, width) => {
  const [black, white] = base.ends ? JSON.parse(base.ends) : [0, 100], unit = base.ends ? '' : ' %';
  const shown = (value) => `${Math.abs(white - black) < 20 ? value.toFixed(2) : Math.round(value)}${unit}`;
  return `Level ${shown(black + level * (white - black))} · Width ${shown(width * Math.abs(white - black))}`;
};
const draw = () => {
  waiting = 0;
  stage.classList.toggle('bare', !base);
  for (const each of element.querySelectorAll('.tools :is(button:not(.always), input)')) each.disabled = !base;
  element.querySelector('[data-tool=box]').disabled = !base?.boxes;
  if (!base) {
    canvas.width = canvas.height = 1;
    drawn.picture = null;
  }
  if (!base || !stage.clientWidth) return;
  paint();
  const scale = fit(), put = (name, value) => stage.style.setProperty(name, value);
  put('--w', `${base.width * scale}px`);
  put('--h', `${base.height * scale}px`);
  put('--x', `${view.x}px`);
  put('--y', `${view.y}px`);
  put('--turn', `${view.turns * 90}deg`);
  put('--zoom', view.times);
  put('--opacity', opacity.value / 100);
  stage.classList.toggle('hidden-evidence', Number(opacity.value) === 0);
  stage.dataset.tool = view.tool;
  stage.dataset.zoomed = view.times > 1 || ['ruler', 'box'].includes(view.tool);
  // What is saved is the image as it is seen.
  const {level, width, inverted} = view;
  stage.dataset.look = JSON.stringify({level, width, inverted, opacity: opacity.value / 100});
  values.textContent = `${windowWords(level, width)} · ${view.times.toFixed(1)} ×`;
  for (const button of element.querySelectorAll('[data-tool], [data-preset], [data-act=invert]')) {
    const {tool, preset} = button.dataset;
    const on = tool ? tool === view.tool : preset ? Number(preset) === view.preset : view.inverted;
    button.setAttribute('aria-pressed', String(on));
  }
  drawRuler();
  drawBox();
  if (base.detail && !detail && asked !== base.key && coarse()) {
    asked = base.key;
    trigger('select', {detail: base.key});
  }
};

// --- places: of the pointer from the middle of the stage, and of it in the picture
const from = (event) => {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
};
const rotated = ([x, y], turns) => {
  for (let turn = 0; turn < (turns % 4 + 4) % 4; turn++) [x, y] = [-y, x];
  return [x, y];
};
const inside = (place) => {
  const scale = fit() * view.times, [x, y] = rotated([place[0] - view.x, place[1] - view.y], -view.turns);
  return [x / scale + base.width / 2, y / scale + base.height / 2];
};
const outside = ([column, row]) => {
  const scale = fit() * view.times;
  const [x, y] = rotated([(column - base.width / 2) * scale, (row - base.height / 2) * scale], view.turns);
  return [x + view.x, y + view.y];
};

// --- what can be done
const move = (x, y) => {
  const [w, h] = turned() ? [base.height, base.width] : [base.width, base.height], scale = fit() * view.times;
  view.x = keep(x, -(w * scale + stage.clientWidth) / 2 + 40, (w * scale + stage.clientWidth) / 2 - 40);
  view.y = keep(y, -(h * scale + stage.clientHeight) / 2 + 40, (h * scale + stage.clientHeight) / 2 - 40);
  show();
};
// The point under `at` stays where it is.
const zoom = (times, [x, y] = [0, 0]) => {
  const next = keep(times, Math.min(1, view.times), MOST), ratio = next / view.times;
  view.times = next;
  if (next === 1) move(0, 0);
  else move(x - (x - view.x) * ratio, y - (y - view.y) * ratio);
};
const expose = (level, width) => {
  Object.assign(view, {level: keep(level, 0, 1), width: keep(width, 0.01, 1.5), preset: 0});
  show();
};
const choose = (preset) => {
  if (!base) return; // a note alone beside a case
  const [level, width] = JSON.parse(base.windows)[preset - 1];
  Object.assign(view, {level, width, preset});
  show();
};
// Under the tab that is open: the first case by its number, which may stand below a group of others; or the first row.
const first = () => {
  const buttons = [...document.querySelectorAll('button.open[popovertarget$="case-1"], button[data-open]')];
  buttons.find((button) => button.checkVisibility())?.focus();
};
const acts = {
  fit: () => { view.times = 1; move(0, 0); },
  // A pixel of the file is a pixel of the screen.
  whole: () => { view.times = keep(base.across / base.width / fit() / devicePixelRatio, 0.05, MOST); move(0, 0); },
  rotate: () => { view.turns = (view.turns + 1) % 4; move(-view.y, view.x); },
  invert: () => { view.inverted = !view.inverted; show(); },
  reset: () => {
    Object.assign(view, {inverted: false, turns: 0, tool: 'window'});
    ends = null;
    unbox();
    choose(1);
    acts.fit();
  },
  evidence: () => {
    if (!document.querySelector('#evidence img')) document.querySelector('button[data-finding]')?.click();
    else opacity.value = Number(opacity.value) ? 0 : 40;
    show();
  },
  full: () => {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.querySelector('#desk').requestFullscreen();
  },
  box: () => { if (base.boxes) view.tool = 'box'; show(); },
  unbox: () => unbox(),
  onward: () => document.querySelector('#onward')?.click(),
  write: () => document.querySelector('#note textarea')?.focus(),
  keys: () => element.querySelector('#keys').togglePopover(),
};
const KEYS = {b: 'box', escape: 'unbox', r: 'rotate', i: 'invert', 0: 'reset', e: 'evidence', f: 'full', n: 'onward', w: 'write', '?': 'keys'};

// --- ruler: in millimetres where the header says how far apart pixels are, else in pixels of the file
const drawRuler = () => {
  line.style.visibility = ends ? 'visible' : 'hidden';
  ruled.hidden = !ends;
  if (!ends) return;
  const [[a, b], [c, d]] = ends.map(outside), [x, y] = [stage.clientWidth / 2, stage.clientHeight / 2];
  const places = {x1: a + x, y1: b + y, x2: c + x, y2: d + y};
  for (const [name, value] of Object.entries(places)) line.setAttribute(name, value);
  // Pixels of the file, of which the page may show fewer.
  const [columns, rows] = [0, 1].map((axis) => (ends[1][axis] - ends[0][axis]) * base.across / base.width);
  const [down, across] = base.spacing ? base.spacing.split(' ').map(Number) : [1, 1];
  const length = Math.hypot(columns * across, rows * down);
  ruled.textContent = base.spacing ? `${length.toFixed(1)} mm (${base.spacingFrom})`
    : `${length.toFixed(0)} pixels (the file gives no spacing)`;
  ruled.style.left = `${keep(Math.max(a, c) + x + 8, 0, stage.clientWidth - ruled.offsetWidth)}px`;
  ruled.style.top = `${keep((b + d) / 2 + y, 0, stage.clientHeight - ruled.offsetHeight)}px`;
};

// --- box: the server finds the cases that are alike there
const seek = (asked) => trigger('submit', {box: asked, key: base.key});
const drawBox = () => {
  frame.style.visibility = box ? 'visible' : 'hidden';
  if (!box) return;
  const [[a, b], [c, d]] = box.map(outside), [x, y] = [stage.clientWidth / 2, stage.clientHeight / 2];
  const sides = {x: Math.min(a, c) + x, y: Math.min(b, d) + y, width: Math.abs(a - c), height: Math.abs(b - d)};
  for (const [name, value] of Object.entries(sides)) frame.setAttribute(name, value);
};
const boxed = () => {
  const [[a, b], [c, d]] = box.map(outside);
  if (Math.min(Math.abs(a - c), Math.abs(b - d)) < 4) unbox(); // a click, not a box
  else seek(box.flatMap(([column, row]) => [column / base.width, row / base.height]));
};
const unbox = () => {
  if (box) seek(null);
  box = null;
  show();
};
document.addEventListener('click', (event) => {
  if (event.target.closest('#cases :is([data-back], [data-like])')) { box = null; show(); } // the server knows
});

// --- pointer: left is the tool, middle or space pans, right zooms; two fingers pinch
const fingers = new Map();
let act = null, pinch = null;
const drag = (down) => {
  const pans = down.button === 1 || space || (down.pointerType === 'touch' && view.tool === 'window' && view.times > 1);
  const tool = down.button === 2 ? 'zoom' : pans ? 'pan' : view.tool, begun = {...view}, at = from(down);
  if (tool === 'ruler') ends = [inside(at), inside(at)];
  if (tool === 'box') box = [inside(at), inside(at)];
  return (event) => {
    const [dx, dy] = [event.clientX - down.clientX, event.clientY - down.clientY];
    if (tool === 'window') expose(begun.level + dy / 400, begun.width + dx / 400);
    if (tool === 'pan') move(begun.x + dx, begun.y + dy);
    if (tool === 'zoom') zoom(begun.times * Math.exp(-dy / 150), at);
    if (tool === 'ruler') { ends[1] = inside(from(event)); show(); }
    if (tool === 'box' && box) {
      box[1] = inside(from(event));
      if (event.type === 'pointerup') boxed();
      show();
    }
  };
};
stage.addEventListener('pointerdown', (event) => {
  if (!base) return;
  stage.focus({preventScroll: true});
  if (event.button === 1) event.preventDefault(); // else the browser scrolls
  stage.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
  act = fingers.size === 1 ? drag(event) : null;
  if (fingers.size === 2) pinch = {...apart(), times: view.times};
});
const apart = () => {
  const [a, b] = [...fingers.values()].map(from);
  return {wide: Math.hypot(a[0] - b[0], a[1] - b[1]), at: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]};
};
stage.addEventListener('pointermove', (event) => {
  if (!fingers.has(event.pointerId) || !base) return;
  fingers.set(event.pointerId, event);
  if (act) act(event);
  else if (pinch && fingers.size === 2) {
    const now = apart();
    zoom(pinch.times * now.wide / pinch.wide, now.at);
  }
});
for (const end of ['pointerup', 'pointercancel']) {
  stage.addEventListener(end, (event) => {
    fingers.delete(event.pointerId);
    if (act && end === 'pointerup' && view.tool === 'box') act(event);
    act = pinch = null;
  });
}
stage.addEventListener('dblclick', () => base && acts.fit());
stage.addEventListener('contextmenu', (event) => event.preventDefault());
// The wheel zooms; where there is nothing left to zoom, and while it scrolls the page already, it scrolls the page.
window.addEventListener('scroll', () => { scrolled = performance.now(); }, {passive: true});
stage.addEventListener('wheel', (event) => {
  if (!base) return;
  const out = event.deltaY > 0, ended = out ? view.times <= 1 : view.times >= MOST;
  if (!event.ctrlKey && (ended || performance.now() - scrolled < 300)) return;
  event.preventDefault();
  zoom(view.times * Math.exp(-event.deltaY / 400), from(event));
}, {passive: false});

// --- keys and buttons
window.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest('input:not([type=range], [type=radio], [type=checkbox]), textarea, select, [contenteditable]')) {
    if (event.key === 'Escape') event.target.blur(); // the keys below count again
    return;
  }
  if (document.querySelector('.pair:popover-open')) return;
  if (event.key.toLowerCase() === 'c') first();
  if (!stage.offsetParent) return;
  if (event.key === ' ' && stage.matches(':hover') && !event.target.closest('button, summary, input')) {
    space = true;
    event.preventDefault(); // else the page scrolls
  }
  const key = event.key.toLowerCase(), name = KEYS[key];
  if (name === 'write') event.preventDefault(); // else its letter is written
  if (['keys', 'onward', 'write'].includes(name)) acts[name]();
  else if (base && name) acts[name]();
  else if (base && /^[1-4]$/.test(key)) choose(Number(key));
});
window.addEventListener('keyup', (event) => { if (event.key === ' ') space = false; });
element.addEventListener('click', (event) => {
  const {tool, preset, act: name} = event.target.closest('button')?.dataset || {};
  if (tool) { view.tool = tool; ends = null; show(); }
  if (preset) choose(Number(preset));
  if (name) acts[name]();
});
opacity.addEventListener('input', show);
new ResizeObserver(show).observe(stage);
const news = {childList: true, subtree: true, attributeFilter: ['data-greys', 'data-key']};
new MutationObserver(load).observe(document.querySelector('#radiograph'), news);
new MutationObserver(loadDetail).observe(document.querySelector('#detail'), news);
// What a case beside the image (beside.js) is looked at with.
stage.viewer = {view, expose, choose, show, picture: () => (base && detail && coarse() ? detail : base)};
stage.tabIndex = 0;
stage.setAttribute('role', 'region');
stage.setAttribute('aria-label', 'Reading area');
show();
load();
};
// The stage is drawn beside these buttons, not before them.
const wait = () => {
  if (document.querySelector('#stage canvas') && document.querySelector('#detail')) run();
  else requestAnimationFrame(wait);
};
wait();
