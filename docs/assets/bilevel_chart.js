/* Curves of the bilevel benchmark: job, axes and methods are chosen, medians with bands
   of the quartiles over the seeds are drawn as SVG. Without this script, or without the
   files of results, the pictures that are in its place stay. */
(() => {
  "use strict";

  const COLORS = ["#0b72d9", "#d1495b", "#e08700", "#2a9d8f", "#8a5fc7", "#8d6e63",
    "#5b8c2a", "#c2528b", "#3aa6c9", "#9a8400"];
  const DASHES = ["", "7 3", "2 3"];
  const FIRST = ["Implicit(CG)", "stocBiO", "AmIGO", "SOBA", "SABA", "F2SA"];
  const AXES = {
    x: { evaluations: "gradient evaluations of a batch", seconds: "processor seconds" },
    y: { norm: "norm of the gradient", value: "value function" },
  };
  const LEFT = 64, RIGHT = 12, TOP = 12, BOTTOM = 46;
  const NAMESPACE = "http://www.w3.org/2000/svg";

  const make = (tag, options = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  const shape = (tag, options = {}, text = "") => {
    const node = document.createElementNS(NAMESPACE, tag);
    for (const [key, value] of Object.entries(options)) node.setAttribute(key, value);
    node.textContent = text;
    return node;
  };

  /* What is not finite is null in a file, and counts as larger than all. */
  const quantile = (values, share) => {
    const sorted = values.map((v) => (v === null ? Infinity : v)).sort((a, b) => a - b);
    return sorted[Math.round(share * (sorted.length - 1))];
  };

  /* {method: {x: [...], low: [...], middle: [...], high: [...]}} */
  const summarize = (found, x, y) => {
    const methods = {};
    for (const curve of found.curves) (methods[curve.method] ||= []).push(curve);
    const at = (curves, key, place, share) =>
      quantile(curves.map((curve) => curve[key][place]), share);
    for (const [name, curves] of Object.entries(methods)) {
      const places = curves[0].evaluations.map((_, i) => i).slice(1);
      methods[name] = {
        x: places.map((i) => at(curves, x, i, 0.5)),
        low: places.map((i) => at(curves, y, i, 0.25)),
        middle: places.map((i) => at(curves, y, i, 0.5)),
        high: places.map((i) => at(curves, y, i, 0.75)),
      };
    }
    return methods;
  };

  const range = (values) => {
    const fine = values.filter((v) => v > 0 && Number.isFinite(v));
    const least = Math.log10(Math.min(...fine)), most = Math.log10(Math.max(...fine));
    const room = 0.03 * (most - least) || 0.1;
    return [least - room, most + room];
  };

  /* Powers of ten, and 2 and 5 times these; round numbers where the range is short. */
  const ticks = ([least, most]) => {
    const wide = most - least, found = [];
    if (wide < 0.7) {
      const low = 10 ** least, high = 10 ** most, unit = 10 ** Math.floor(Math.log10(high - low));
      const step = [0.2, 0.5, 1, 2].map((part) => part * unit)
        .find((size) => (high - low) / size <= 7) || 2 * unit;
      for (let i = Math.ceil(low / step); i * step <= high; i += 1) found.push(i * step);
      return found;
    }
    const every = Math.max(1, Math.ceil(wide / 8));
    for (let power = Math.floor(least); power <= most; power += 1) {
      if (wide > 2.2 && power % every) continue;
      for (const part of wide > 2.2 ? [1] : [1, 2, 5]) {
        const place = power + Math.log10(part);
        if (place >= least && place <= most) found.push(part * 10 ** power);
      }
    }
    return found;
  };

  const write = (value) => {
    const plain = Number(value.toPrecision(3));
    return value >= 1e4 || value < 1e-2 ? plain.toExponential().replace("e+", "e")
      : String(plain);
  };

  const draw = (found, state, styles) => {
    const { x, y } = state;
    const WIDTH = state.narrow ? 400 : 720, HEIGHT = state.narrow ? 380 : 420;
    const all = summarize(found, x, y);
    const chosen = Object.keys(all).filter((name) => state.methods.has(name));
    const svg = shape("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      "aria-label": `${AXES.y[y]} against ${AXES.x[x]}: ${chosen.join(", ") || "no method"}`,
    });
    const shown = chosen.length ? chosen : Object.keys(all);
    const across = range(shown.flatMap((name) => all[name].x));
    const up = range(shown.flatMap((name) => all[name].middle));
    const right = (v) => LEFT + ((Math.log10(v) - across[0]) / (across[1] - across[0]))
      * (WIDTH - LEFT - RIGHT);
    const high = (v) => HEIGHT - BOTTOM - ((Math.log10(v) - up[0]) / (up[1] - up[0]))
      * (HEIGHT - TOP - BOTTOM);
    const clip = shape("clipPath", { id: "bilevel-clip" });
    clip.append(shape("rect", { x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT,
      height: HEIGHT - TOP - BOTTOM }));
    svg.append(clip);
    for (const value of ticks(across)) {
      svg.append(
        shape("line", { x1: right(value), x2: right(value), y1: TOP, y2: HEIGHT - BOTTOM,
          class: "grid" }),
        shape("text", { x: right(value), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" },
          write(value)));
    }
    for (const value of ticks(up)) {
      svg.append(
        shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: high(value), y2: high(value),
          class: "grid" }),
        shape("text", { x: LEFT - 6, y: high(value) + 4, "text-anchor": "end" },
          write(value)));
    }
    svg.append(shape("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 8,
      "text-anchor": "middle" }, AXES.x[x]));
    const curves = shape("g", { "clip-path": "url(#bilevel-clip)" });
    for (const name of chosen) {
      const curve = all[name], [color, dash] = styles[name];
      const fine = curve.x.map((_, i) => i).filter((i) => Number.isFinite(curve.middle[i])
        && curve.middle[i] > 0 && curve.x[i] > 0);
      const line = (key, order) => order.map((i) =>
        `${right(curve.x[i]).toFixed(1)},${high(Math.min(Math.max(curve[key][i], 1e-30),
          1e30)).toFixed(1)}`).join(" ");
      const band = shape("polygon", { fill: color, "fill-opacity": 0.15,
        points: `${line("low", fine)} ${line("high", [...fine].reverse())}` });
      const middle = shape("polyline", { fill: "none", stroke: color, "stroke-width": 2,
        "stroke-dasharray": dash, points: line("middle", fine) });
      const title = shape("title", {}, name);
      middle.append(title);
      curves.append(band, middle);
    }
    svg.append(curves);
    return svg;
  };

  const choice = (label, values, chosen, change) => {
    const select = make("select");
    for (const [value, text] of Object.entries(values)) {
      const option = make("option", { value }, text);
      option.selected = value === chosen;
      select.append(option);
    }
    select.addEventListener("change", () => change(select.value));
    return make("label", {}, `${label} `, select);
  };

  const start = async (place) => {
    const jobs = JSON.parse(place.dataset.jobs);
    const state = { job: Object.keys(jobs)[0], x: "evaluations", y: "norm",
      methods: new Set(FIRST) };
    const files = {};
    const load = async (job) => {
      if (!files[job]) {
        const answer = await fetch(`${place.dataset.results}${job}.json`);
        if (!answer.ok) throw new Error(`no results of ${job}`);
        files[job] = await answer.json();
      }
      return files[job];
    };
    const styles = {};
    const styleOf = (name) => {
      const number = Object.keys(styles).length;
      styles[name] ||= [COLORS[number % COLORS.length],
        DASHES[Math.floor(number / COLORS.length) % DASHES.length]];
      return styles[name];
    };
    await load(state.job);
    const frame = make("div", { class: "bilevel-frame" });
    const toggles = make("div", { class: "bilevel-methods", role: "group",
      "aria-label": "Methods" });
    const note = make("p", { class: "bilevel-note", role: "status" });

    const update = async () => {
      let found;
      try {
        found = await load(state.job);
      } catch (error) {
        note.textContent = `The file could not be read: ${error.message}.`;
        return;
      }
      const names = Object.keys(found.settings);
      names.forEach(styleOf);
      state.narrow = place.clientWidth < 560;
      frame.replaceChildren(draw(found, state, styles));
      const focused = document.activeElement?.dataset?.method;
      toggles.replaceChildren(...names.map((name) => {
        const [color, dash] = styles[name];
        const sample = shape("svg", { viewBox: "0 0 24 8", class: "sample",
          "aria-hidden": "true" });
        sample.append(shape("line", { x1: 0, x2: 24, y1: 4, y2: 4, stroke: color,
          "stroke-width": 3, "stroke-dasharray": dash }));
        const on = state.methods.has(name);
        const button = make("button", { type: "button", "aria-pressed": on,
          "data-method": name }, sample, name);
        button.addEventListener("click", () => {
          if (on) state.methods.delete(name); else state.methods.add(name);
          update();
        });
        return button;
      }));
      if (focused) toggles.querySelector(`[data-method="${CSS.escape(focused)}"]`)?.focus();
      note.textContent = `Medians and quartiles of ${new Set(found.curves.map((c) =>
        c.seed)).size} seeds. ${found.date}, ${found.machine}.`;
    };

    const set = (key) => (value) => { state[key] = value; update(); };
    const all = make("button", { type: "button" }, "All");
    const none = make("button", { type: "button" }, "None");
    all.addEventListener("click", () => {
      state.methods = new Set(Object.keys(files[state.job].settings));
      update();
    });
    none.addEventListener("click", () => { state.methods = new Set(); update(); });
    const controls = make("div", { class: "bilevel-controls" },
      choice("Job", jobs, state.job, set("job")),
      choice("Across", AXES.x, state.x, set("x")),
      choice("Up", AXES.y, state.y, set("y")), all, none);
    window.addEventListener("resize", () => {
      if (state.narrow !== place.clientWidth < 560) update();
    });
    await update();
    place.replaceChildren(controls, frame, toggles, note);
  };

  const place = document.querySelector(".bilevel-chart");
  if (place) start(place).catch(() => {}); // the pictures stay
})();
