/** Files in one zip, stored without compression (APPNOTE.TXT, version 2.0). */

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const UTF8 = 0x0800;
const EPOCH = 0x0021; // 1980-01-01: the same files make the same zip

/**
 * @param {Array<{name: string, content: Uint8Array}>} files to be stored.
 * @returns {Blob} the zip.
 */
export function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, content } of files) {
    const title = new TextEncoder().encode(name);
    const fields = [20, UTF8, 0, 0, EPOCH];
    const sizes = [crc32(content), content.length, content.length];
    const local = [...u32(LOCAL), ...fields.flatMap(u16), ...sizes.flatMap(u32), ...u16(title.length), ...u16(0), ...title];
    const rest = [...[title.length, 0, 0, 0, 0].flatMap(u16), ...u32(0), ...u32(offset), ...title];
    directory.push(...u32(CENTRAL), ...u16(20), ...fields.flatMap(u16), ...sizes.flatMap(u32), ...rest);
    parts.push(Uint8Array.from(local), content);
    offset += local.length + content.length;
  }
  const counts = [0, 0, files.length, files.length].flatMap(u16);
  const end = [...u32(END), ...counts, ...u32(directory.length), ...u32(offset), ...u16(0)];
  return new Blob([...parts, Uint8Array.from(directory), Uint8Array.from(end)], { type: "application/zip" });
}

/** The CRC-32 of bytes (ISO 3309). */
export function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function u16(value) {
  return [value & 255, (value >>> 8) & 255];
}

function u32(value) {
  return [...u16(value), ...u16(value >>> 16)];
}
