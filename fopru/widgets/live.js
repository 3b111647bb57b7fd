// The page's half of the figures in fopru.widgets.live: all that they show lies in the widget's state.

import { dimmed, known, laid, make, outline, percent, verdict, viridis } from "./parts.js";

const SIDE = 336; // pixels of a picture
const share = (part, whole) => `${part} of ${whole}`;
const quoted = (text) => (text ? `“${text}”` : "nothing");

/** A number of seconds in words of two digits. */
function time(seconds) {
  if (!seconds) return "–";
  const [value, unit] = seconds < 1 ? [1000 * seconds, "ms"] : [seconds, "s"];
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`;
}

/** What is said and known of an answer, in a sentence. */
function told(answer) {
  const knows = { yes: "It knows the answer.", no: "It does not know the answer.", "no choices": "" };
  return `It says ${quoted(answer.text)}: ${verdict(answer)}. ${knows[known(answer)]}`;
}

/** What every figure has: a state that controls change, pictures, bars and a spoken sentence. */
class Figure {
  constructor(data, caption) {
    this.data = data;
    this.state = {};
    this.painters = [];
    this.sentence = make("p", { className: "sentence", attrs: { "aria-live": "polite" } });
    this.controls = make("div", { className: "controls" });
    this.body = make("div", { className: "body" });
    this.element = make("figure", { className: "fopru-live" }, this.controls, this.body,
      this.sentence, make("figcaption", { textContent: caption }));
    if (data.image) {
      this.image = new Image();
      this.image.onload = () => this.draw();
      this.image.src = data.image;
    }
    if (data.question) {
      this.controls.append(make("p", { className: "question" },
        make("b", { textContent: data.question }), ` Right answer: ${data.answer}.`));
    }
  }

  set(change) {
    Object.assign(this.state, change);
    this.draw();
  }

  draw() { this.painters.forEach((paint) => paint(this.state)); }

  /** A slider of the state's `name`, from 0 to `most`; `says` puts its place into words. */
  slider(name, label, most, at, says) {
    const value = make("output");
    const input = make("input", {
      type: "range", min: 0, max: most, step: 1, attrs: { "aria-label": label },
      oninput: () => this.set({ [name]: Number(input.value) }),
    });
    this.state[name] = at;
    this.controls.append(make("label", { className: "slider" }, make("span", {}, label), input, value));
    this.painters.push((state) => {
      input.value = state[name];
      value.textContent = says(state[name]);
      input.setAttribute("aria-valuetext", value.textContent);
    });
  }

  /** A choice of the state's `name` among values with their words. */
  choice(name, label, options, at) {
    const group = `live-${Math.random()}`;
    this.state[name] = at;
    const inputs = Object.entries(options).map(([value, words]) => {
      const input = make("input", {
        type: "radio", name: group, checked: value === at, onchange: () => this.set({ [name]: value }),
      });
      return make("label", {}, input, words);
    });
    this.controls.append(make("fieldset", {}, make("legend", { textContent: label }), ...inputs));
  }

  /** A box to tick for the state's `name`. */
  tick(name, label, at) {
    this.state[name] = at;
    const input = make("input", {
      type: "checkbox", checked: at, onchange: () => this.set({ [name]: input.checked }),
    });
    this.controls.append(make("label", { className: "tick" }, input, label));
  }

  /** A picture with words under it; `paint(canvas, state)` draws it and returns the words. */
  picture(paint) {
    const canvas = make("canvas", { width: SIDE, height: SIDE, attrs: { role: "img" } });
    const words = make("p", { className: "under" });
    this.body.classList.toggle("pair", this.body.childElementCount > 0);
    this.body.append(make("div", { className: "panel" }, canvas, words));
    this.painters.push((state) => {
      if (!this.image.complete || !this.image.naturalWidth) return;
      words.textContent = paint(canvas, state);
      canvas.setAttribute("aria-label", words.textContent);
    });
  }

  /** Bars under a heading; `rows(state)` returns [name, share, whether it stands out] of each. */
  bars(heading, rows) {
    const list = make("ul", { className: "bars" });
    this.body.append(make("div", { className: "panel" }, make("b", { textContent: heading }), list));
    this.painters.push((state) => list.replaceChildren(...rows(state).map(([name, value, bold]) => (
      make("li", { className: bold ? "chosen" : "" }, make("span", { textContent: name }),
        make("i", { style: `width: ${(52 * value).toFixed(1)}%`, attrs: { "aria-hidden": "true" } }),
        percent(value))))));
  }

  /** The sentence that is read out when something moves. */
  says(sentence) {
    this.painters.push((state) => { this.sentence.textContent = sentence(state); });
  }
}

const FIGURES = {
  sink(figure) {
    const { data } = figure;
    const { strengths, drawn, received, kept, place, width } = data;
    figure.slider("at", "Strength of the sink", strengths.length - 1, strengths.indexOf(2),
      (at) => `${strengths[at]}`);
    figure.choice("by", "Kept by", { rank: "rank", row: "row" }, "rank");
    figure.picture((canvas, { at }) => {
      const [context, cell] = laid(canvas, figure.image, data, "grayscale(1)");
      received[at].forEach((level, i) => { // -49 ... 49: a tenth to ten times an even share
        context.fillStyle = viridis((level + 49) / 98);
        context.fillRect(...cell(i));
      });
      outline(context, cell, width, [place], [["#fff", 6], ["#D55E00", 4]]);
      return `What each patch receives, from a tenth of an even share (dark) to ten times it (bright). `
        + `The sink (orange) receives ${percent(drawn[at])} of all.`;
    });
    figure.picture((canvas, { at, by }) => {
      dimmed(canvas, figure.image, data, kept[by][at], [place]);
      return `${by}: ${kept[by][at].length} patches stay.`;
    });
    figure.says(({ at, by }) => {
      const before = new Set(kept[by][0]);
      const moved = kept[by][at].filter((i) => !before.has(i)).length;
      return `The sink draws ${percent(drawn[at])} of the attention, and ${share(moved, before.size)} kept `
        + `places are others than without it.`;
    });
  },

  rank_and_row(figure) {
    const { data } = figure;
    const { order, rows, answers, evidence, held, width, height } = data;
    const kept = (by, count) => (by === "rank"
      ? order.slice(0, count * width)
      : rows.slice(0, count).flatMap((r) => Array.from({ length: width }, (_, c) => r * width + c)));
    const under = new Set(evidence);
    figure.slider("count", "Budget", height - 1, height / 4 - 1,
      (at) => `${at + 1} of ${height} rows, ${(at + 1) * width} tokens`);
    for (const by of ["rank", "row"]) {
      figure.picture((canvas, { count }) => {
        const some = kept(by, count + 1);
        dimmed(canvas, figure.image, data, some, evidence);
        const found = some.filter((i) => under.has(i)).length;
        const sum = some.reduce((total, i) => total + held[i], 0);
        return `${by}: holds ${percent(sum)} of the significance and ${share(found, under.size)} patches of `
          + `the evidence. ${told(answers[by][count])}`;
      });
    }
    figure.says(({ count }) => `With ${(count + 1) * width} tokens rank says `
      + `${quoted(answers.rank[count].text)}, row ${quoted(answers.row[count].text)}.`);
  },

  order_and_position(figure) {
    const { data } = figure;
    figure.choice("share", "Tokens kept", { 0.25: "25 %", 0.1: "10 %", 0.05: "5 %" }, "0.1");
    figure.choice("ids", "Position ids", { reindex: "new", preserve: "own" }, "reindex");
    figure.choice("order", "Order", { order: "of the picture", mixed: "mixed" }, "order");
    const kept = ({ share: some }) => data.kept[some];
    figure.picture((canvas, state) => {
      dimmed(canvas, figure.image, data, kept(state), data.evidence);
      return `${kept(state).length} of ${data.height * data.width} patches stay.`;
    });
    const list = make("ol", { className: "tokens" });
    figure.body.append(make("div", { className: "panel" },
      make("b", { textContent: "As the language model reads them" }), list));
    figure.painters.push((state) => {
      const some = kept(state);
      const places = some.map((token, i) => [token, data.first + (state.ids === "reindex" ? i : token)]);
      const read = state.order === "order"
        ? places
        : data.mixed[state.share].map((i, at) => (
          state.ids === "reindex" ? [places[i][0], places[at][1]] : places[i]));
      const size = SIDE / data.width;
      list.replaceChildren(...read.map(([token, id]) => {
        const canvas = make("canvas", { width: size, height: size, attrs: { "aria-hidden": "true" } });
        canvas.getContext("2d").drawImage(figure.image, -(token % data.width) * size,
          -Math.floor(token / data.width) * size, SIDE, SIDE);
        return make("li", { title: `patch ${token}, position ${id}` }, canvas, `${id}`);
      }));
    });
    figure.says(({ share: some, ids, order }) => {
      const answer = data.answers[`${some} ${ids} ${order}`];
      return `${told(answer)} The probability of the right answer with its end is ${percent(answer.p)}.`;
    });
  },

  two_duplicates(figure) {
    const { data } = figure;
    const names = { both: "both", A: "A alone", B: "B alone", none: "neither" };
    const now = ({ first, second }) => (first ? (second ? "both" : "A") : second ? "B" : "none");
    const left = (state) => [state.first && data.pair[0], state.second && data.pair[1]]
      .filter((place) => place !== false);
    figure.tick("first", "Keep patch A", true);
    figure.tick("second", "Keep patch B", false);
    figure.picture((canvas, state) => {
      const [context, cell] = dimmed(canvas, figure.image, data, [...data.rest, ...left(state)], data.pair);
      Object.assign(context, { font: "bold 17px sans-serif", textAlign: "center", textBaseline: "middle" });
      data.pair.forEach((place, i) => {
        const [x, y, wide, high] = cell(place);
        Object.assign(context, { lineWidth: 4, strokeStyle: "#000", fillStyle: "#fff" });
        context.strokeText("AB"[i], x + wide / 2, y + high / 2);
        context.fillText("AB"[i], x + wide / 2, y + high / 2);
      });
      return `Of the evidence ${{ both: "A and B are", A: "A is", B: "B is", none: "nothing is" }[now(state)]} `
        + `left. The cosine of A and B is ${data.cosine.toFixed(3)}.`;
    });
    figure.bars("Probability of the right answer", (state) => Object.entries(names).map(([key, name]) => [
      name, Math.exp(data.answers[key].open), key === now(state)]));
    figure.says((state) => {
      const answer = data.answers[now(state)];
      return `${told(answer)} The log-likelihood of the right answer is `
        + `${answer.open.toFixed(2).replace("-", "−")} nats.`;
    });
  },

  break_even(figure) {
    const { starts, colors } = figure.data;
    const stages = ["vision", "prefill", "decode", "overhead"];
    const place = (value) => Math.round(20 * Math.log10(value / 1e-4)); // 0.1 ms is 0
    const value = (at) => 1e-4 * 10 ** (at / 20);
    const words = (count) => Math.round(20 * Math.log2(count));
    const count = (at) => Math.round(2 ** (at / 20));
    const filled = (start) => ({
      ...Object.fromEntries(stages.map((stage) => [stage, place(start[stage])])),
      text: words(start.text), answer: words(start.answer), kept: Math.round(100 * start.kept) - 1,
    });
    const pick = make("select", { onchange: () => figure.set(filled(starts[pick.value])) },
      ...starts.map(({ name }, i) => make("option", { value: i, textContent: name })));
    figure.controls.append(make("label", {}, "Begin with ", pick));
    const at = filled(starts[0]);
    for (const [name, label] of [["vision", "Vision tower"], ["prefill", "Prefill, all tokens"],
      ["decode", "One step of decoding"], ["overhead", "Overhead of pruning"]]) {
      figure.slider(name, label, 120, at[name], (i) => time(value(i)));
    }
    figure.slider("text", "Text in the prompt", 240, at.text, (i) => `${count(i)} tokens`);
    figure.slider("answer", "Length of the answer", 240, at.answer, (i) => `${count(i)} tokens`);
    figure.slider("kept", "Visual tokens kept", 99, at.kept, (i) => `${i + 1} %`);
    const shown = { vision: "vision", prefill: "prefill", decode: "decode", overhead: "pruning" };
    const sums = (state) => {
      const start = starts[pick.value];
      const kept = Math.max(1, Math.floor((start.visual * (state.kept + 1)) / 100));
      const each = value(state.prefill) / (start.visual + start.text);
      const text = count(state.text);
      const base = { vision: value(state.vision), decode: (count(state.answer) - 1) * value(state.decode) };
      const full = { ...base, prefill: each * (start.visual + text), overhead: 0 };
      const pruned = { ...base, prefill: each * (kept + text), overhead: value(state.overhead) };
      const whole = (parts) => stages.reduce((sum, stage) => sum + parts[stage], 0);
      return { full, pruned, kept, visual: start.visual, before: whole(full), after: whole(pruned) };
    };
    const table = make("table");
    const stacks = make("div", { className: "stacks", attrs: { "aria-hidden": "true" } });
    figure.body.append(make("div", { className: "whole" }, stacks, table));
    figure.painters.push((state) => {
      const { full, pruned, before, after } = sums(state);
      const most = Math.max(before, after);
      const stack = (name, parts) => [make("span", { textContent: name }), make("div", {}, ...stages.map(
        (stage, i) => make("i", {
          style: `width: ${(100 * parts[stage]) / most}%; background: ${colors[i]}`, title: shown[stage],
        })))];
      stacks.replaceChildren(...stack("all tokens", full), ...stack("pruned", pruned));
      const row = (head, one, other, color) => make("tr", {}, make("th", { scope: "row" },
        make("i", { style: `background: ${color}`, attrs: { "aria-hidden": "true" } }), head),
      make("td", { textContent: one }), make("td", { textContent: other }));
      table.replaceChildren(make("tr", {}, ...["stage", "all tokens", "pruned"].map((text) => (
        make("th", { scope: "col", textContent: text })))),
      ...stages.map((stage, i) => row(shown[stage], time(full[stage]), time(pruned[stage]), colors[i])),
      row("whole answer", time(before), time(after), "transparent"));
    });
    figure.says((state) => {
      const { full, pruned, kept, visual, before, after } = sums(state);
      const gain = 1 - after / before;
      const even = full.prefill - pruned.prefill;
      return `Keeping ${share(kept, visual)} visual tokens ${gain < 0 ? "loses" : "saves"} `
        + `${Math.abs(100 * gain).toFixed(1)} % of this answer. It breaks even where pruning itself takes `
        + `${time(even)}; here it takes ${time(pruned.overhead)}.`;
    });
  },

  known_and_said(figure) {
    const { data } = figure;
    const { counts, answers, order, height, width } = data;
    const start = counts.indexOf(25);
    figure.slider("at", "Visual tokens kept", counts.length - 1, start < 0 ? 0 : start,
      (at) => share(counts[at], height * width));
    figure.picture((canvas, { at }) => {
      dimmed(canvas, figure.image, data, order.slice(0, counts[at]), data.evidence);
      return `It says ${quoted(answers[at].text)}: ${verdict(answers[at])}.`;
    });
    figure.bars("It knows: how likely each legal answer is", ({ at }) => answers[at].choices
      .map(([name, p]) => [name, p, name === data.answer]));
    figure.says(({ at }) => `${counts[at]} tokens. ${told(answers[at])}`);
  },
};

/** Build the figure of a kind on its data. */
export function built(kind, data, caption) {
  const figure = new Figure(data, caption);
  FIGURES[kind](figure);
  figure.draw();
  return figure;
}

function render({ model, el }) {
  el.append(built(model.get("kind"), model.get("data"), model.get("caption")).element);
}

export default { render };
