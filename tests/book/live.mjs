// Answers cases with the page's own code: node live.mjs MODEL_JS ORT FOLDER < cases.json > answers.json
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [code, runtime, folder] = process.argv.slice(2);
const page = await import(pathToFileURL(code));
const ort = await import(pathToFileURL(runtime));
ort.env.wasm.numThreads = 1;
const file = (name) => new Uint8Array(readFileSync(`${folder}/${name}`));
const told = JSON.parse(readFileSync(`${folder}/model.json`, "utf8"));
const model = await page.Model.start(ort, told, file("eye.onnx"), file("mouth.onnx"));
const block = told.layout[0] - 1;

function kept(picture, method, k) {
  const map = (axis) => model.map(picture, block, 0, axis);
  if (method === "fopru") return page.rank(map(model.criterion(picture)), k);
  if (method === "fopru-row") return page.row(map(model.criterion(picture)), told.width, k / told.width);
  if (method === "cls") return page.rank(map("cls"), k);
  if (method === "random") return page.first(told.order, k);
  return page.first(page.divprune(model.likeness(picture), model.n), k);
}

const DO = {
  async ask({ pixels, width, height, question, right, methods, options }) {
    const picture = await model.see({ data: Buffer.from(pixels, "base64"), width, height });
    const legal = model.legal(question);
    const found = {};
    for (const [method, k] of methods) {
      const places = kept(picture, method, k);
      const asked = new page.Asked(model, picture, question, places, options);
      found[method] = { kept: places, ...await model.answer(asked, right, legal, { shown: 6 }) };
    }
    return { seen: Buffer.from(picture.seen).toString("base64"), legal, methods: found };
  },
  read: ({ text }) => ({ ids: model.words.encode(text), unknown: model.words.unknowns(text) }),
  decode: ({ ids }) => model.words.decode(ids),
  refuse: ({ question }) => model.refusal(question),
  choose: ({ scores, k, width, rows, order }) => [
    page.rank(scores, k), page.row(scores, width, rows), page.first(order, k),
  ],
};

const answers = [];
for (const { kind, ...given } of JSON.parse(readFileSync(0, "utf8"))) answers.push(await DO[kind](given));
process.stdout.write(JSON.stringify(answers));
