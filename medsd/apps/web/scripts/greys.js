// Grey values in the browser, for all that shows pictures: 12 bits, as differences along the rows, their lower bytes before
// their upper ones (see greys.py).
const unpack = async (text) => {
  const letters = atob(text), packed = new Uint8Array(letters.length);
  for (let i = 0; i < packed.length; i++) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = bytes.length / 2, values = new Uint16Array(count);
  for (let i = 0, value = 0; i < count; i++) {
    const step = bytes[i] | bytes[count + i] << 8;
    value += step >> 1 ^ -(step & 1);
    values[i] = value;
  }
  return values;
};
const take = async (source) => {
  const {greys, ...about} = source.dataset;
  source.removeAttribute('data-greys');
  const [width, height] = about.size.split(' ').map(Number);
  return {...about, width, height, values: await unpack(greys), pixels: new ImageData(width, height)};
};
const shade = (canvas, picture, {level, width, inverted}) => {
  const table = new Uint32Array(4096), black = level - width / 2;
  for (let grey = 0; grey < 4096; grey++) {
    const part = Math.min(Math.max((grey / 4095 - black) / width, 0), 1);
    const shown = Math.round(255 * (inverted ? 1 - part : part));
    table[grey] = 0xff000000 | shown << 16 | shown << 8 | shown;
  }
  const target = new Uint32Array(picture.pixels.data.buffer), greys = picture.values;
  for (let i = 0; i < greys.length; i++) target[i] = table[greys[i]];
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext('2d').putImageData(picture.pixels, 0, 0);
};
const keep = (value, least, most) => Math.min(Math.max(value, least), most);
