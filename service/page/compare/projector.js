/** The files that TensorBoard's embedding projector reads: `tensorboard --logdir FOLDER`, or its button "Load". */

import { zip } from "./zip.js";

const SPRITE = 64;

/**
 * @param {string} space the name of the vectors.
 * @param {Array<{name: string, thumbnail: string|null, vector: Float32Array, group: number}>} images `group` numbers the
 *     duplicates; 0 for an image without one.
 * @returns {Promise<Blob>} a zip of tensors.tsv, metadata.tsv, sprite.png and projector_config.pbtxt.
 */
export async function projectorFiles(space, images) {
  const text = (content) => new TextEncoder().encode(content);
  const clean = (name) => name.replaceAll(/[\t\r\n]/g, " ");
  const tensors = images.map(({ vector }) => [...vector].map((value) => value.toPrecision(7)).join("\t"));
  const metadata = ["name\tduplicates", ...images.map(({ name, group }) => `${clean(name)}\t${group || ""}`)];
  const config = `embeddings {
  tensor_name: ${JSON.stringify(space)}
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
  sprite { image_path: "sprite.png" single_image_dim: ${SPRITE} single_image_dim: ${SPRITE} }
}
`;
  return zip([
    { name: "tensors.tsv", content: text(`${tensors.join("\n")}\n`) },
    { name: "metadata.tsv", content: text(`${metadata.join("\n")}\n`) },
    { name: "sprite.png", content: await drawSprite(images) },
    { name: "projector_config.pbtxt", content: text(config) },
  ]);
}

/** All thumbnails in one square picture, row by row, as the projector cuts them out again. */
async function drawSprite(images) {
  const columns = Math.ceil(Math.sqrt(images.length));
  const canvas = new OffscreenCanvas(columns * SPRITE, columns * SPRITE);
  const context = canvas.getContext("2d");
  for (const [index, { thumbnail }] of images.entries()) {
    if (!thumbnail) continue;
    const picture = new Image();
    picture.src = thumbnail;
    await picture.decode();
    const side = Math.min(picture.naturalWidth, picture.naturalHeight);
    const [left, top] = [(picture.naturalWidth - side) / 2, (picture.naturalHeight - side) / 2];
    const [x, y] = [(index % columns) * SPRITE, Math.floor(index / columns) * SPRITE];
    context.drawImage(picture, left, top, side, side, x, y, SPRITE, SPRITE);
  }
  return new Uint8Array(await (await canvas.convertToBlob({ type: "image/png" })).arrayBuffer());
}
