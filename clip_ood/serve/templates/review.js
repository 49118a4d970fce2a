"use strict";
// The page of a review. Images are asked for by their row, a window of them at a time; every decision is sent at once.

const { token, labels, detectors, views: VIEWS } = JSON.parse(document.getElementById("values").textContent);
const at = (id) => document.getElementById(id);
const WINDOW = 24; // images that are asked for at once
const BEFORE = 6; // of them before the one that is shown
const TAIL = 18; // characters at the end of a file's name that are always seen

let view = "suspects";
let place = -1; // of the image that is shown, in its view; -1: the first one that is not decided
let total = 0;
let items = new Map(); // by place, as last heard of
let asked = 0; // the number of the last request, so that no late answer replaces a newer one
const done = []; // decisions of this page, for undo: {rows, view, place}

history.replaceState(null, "", "/"); // the token need not stay in sight

async function ask(path, body) {
  const options = body && { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", "X-Token": token } };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The review does not answer: it was ended. Start it again; everything decided is written.");
  }
  if (answer.ok) return answer.json();
  const text = await answer.text();
  let told = text;
  try {
    told = JSON.parse(text).error || text;
  } catch {}
  throw new Error(told);
}

const failed = (error) => note(error.message, true);

function note(text, wrong = false) {
  at("note").hidden = !text;
  at("note").textContent = text;
  at("note").classList.toggle("wrong", wrong);
}

async function look(to, quietly = false) {
  place = to;
  if (items.has(place) && !quietly) show();
  const number = ++asked;
  try {
    const start = place < 0 ? -1 : Math.max(0, place - BEFORE);
    const heard = await ask(`/api/items?view=${view}&start=${start}&count=${WINDOW}`);
    if (number !== asked) return;
    total = heard.total;
    items = new Map(heard.items.map((each) => [each.place, each]));
    if (place < 0) {
      place = heard.start;
      if (place > 0) return look(place); // with those before it
    }
    place = Math.max(0, Math.min(place, total - 1));
    told(heard.progress);
    show();
  } catch (error) {
    failed(error);
  }
}

function told(progress) {
  const { of, images, decided } = progress;
  const parts = [["reject", "rejected"], ["relabel", "relabelled"], ["keep", "kept"], ["skip", "skipped"]];
  const listed = parts.filter(([key]) => of[key]).map(([key, word]) => `${of[key].toLocaleString("en")} ${word}`);
  at("count").textContent = [`${decided.toLocaleString("en")} of ${images.toLocaleString("en")} decided`, ...listed].join(" · ");
  at("progress").max = images;
  at("progress").value = decided;
  for (const button of document.querySelectorAll("#views button")) {
    const mine = button.dataset.view === view;
    if (mine) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
    const { images: of, left } = progress.views[button.dataset.view];
    button.querySelector("span").textContent = button.dataset.view === "decided" || !of ? of.toLocaleString("en") : left ? `${left.toLocaleString("en")} left` : "✓";
    const words = button.dataset.view === "decided" ? `${of} images are decided` : `${left} of ${of} images are not decided`;
    button.title = `${words} · key ${VIEWS.indexOf(button.dataset.view) + 1}`;
    if (mine) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const cut = progress.cut.length ? ` Line ${progress.cut.join(", ")} of the file of decisions lost its end, and does not count.` : "";
  note((progress.told[view] || "") + cut);
}

function show() {
  const item = items.get(place);
  at("draw").hidden = view !== "draw";
  at("main").dataset.shows = view;
  at("stage").hidden = !item;
  at("actions").hidden = !item;
  at("empty").hidden = Boolean(item);
  const nothing = { groups: "No group lies apart from all others.", duplicates: "No image is a copy of another one.", labels: "No label is in doubt.", draw: "No images were drawn yet.", decided: "Nothing was decided yet." };
  at("empty").textContent = nothing[view] || "There are no images.";
  strip();
  if (!item) {
    at("section").hidden = true;
    return;
  }
  at("section").hidden = !item.section;
  if (item.section) at("title").textContent = item.section.title;
  picture("image", "gone", item.row, "large", item.path);
  at("beside").hidden = !item.beside;
  if (item.beside) beside(item.beside);
  at("rank").textContent = `${(place + 1).toLocaleString("en")} of ${total.toLocaleString("en")}` + (view === "suspects" ? "" : `, suspect ${item.rank.toLocaleString("en")}`);
  at("label").textContent = item.label;
  at("words").textContent = item.words;
  file("path", item.path);
  doubt(item);
  const scores = [["consensus", item.score], ...detectors.map((name, index) => [name, item.scores[index]])].filter(([, value]) => value !== null);
  at("scores").replaceChildren(...scores.flatMap(([name, value]) => [made("dt", name), made("dd", short(value))]));
  mark(item);
  at("back").disabled = place === 0;
  at("next").disabled = place >= total - 1;
  at("relabel").hidden = labels.length < 2;
  const next = items.get(place + 1);
  if (next) new Image().src = `/image/${next.row}/large`;
}

function beside(other) {
  picture("other", "gone_other", other.row, "large", other.path);
  at("is").textContent = other.is;
  at("cosine").textContent = [other.cosine !== null && `cosine ${short(other.cosine)}`, other.label].filter(Boolean).join(", ");
  file("other_path", other.path);
}

function file(id, path) {
  const letters = [...path];
  at(id).title = path;
  at(id).replaceChildren(made("span", letters.slice(0, -TAIL).join("")), made("span", letters.slice(-TAIL).join("")));
}

function doubt(item) {
  at("doubt").hidden = at("accept").hidden = !item.doubt;
  if (!item.doubt) return;
  const suggested = labels[item.doubt.suggested];
  const share = (value) => `${(100 * value).toFixed(0)} %`;
  at("doubt").textContent = `${item.label} → ${suggested}: of the vote of its nearest images, ${share(item.doubt.of_label)} is for ${item.label} and ${share(item.doubt.of_suggested)} for ${suggested}`;
  at("suggested").textContent = suggested;
}

function mark(item) {
  const is = item.decision;
  const words = { keep: "kept", reject: "rejected", relabel: "is", skip: "skipped" };
  at("shown").dataset.is = is ? is.decision : "";
  at("mark").hidden = !is;
  at("mark").textContent = is ? [words[is.decision], is.label, is.by && `(${is.by})`].filter(Boolean).join(" ") : "";
}

function picture(id, gone, row, size, alt) {
  const image = at(id);
  const url = `/image/${row}/${size}`;
  at(gone).hidden = true;
  image.hidden = false;
  image.alt = alt;
  if (image.dataset.url === url) return;
  image.dataset.url = url;
  image.onerror = async () => {
    const answer = await fetch(url).catch(() => null);
    if (image.dataset.url !== url) return;
    const body = answer && !answer.ok ? await answer.json().catch(() => ({})) : {};
    image.hidden = true;
    image.dataset.url = "";
    at(gone).hidden = false;
    at(gone).textContent = body.error || "This image cannot be shown.";
  };
  image.src = url;
}

function strip() {
  const buttons = [...items.values()].filter((each) => each.place >= place - BEFORE).map((each) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.is = each.decision ? each.decision.decision : "";
    button.setAttribute("aria-label", `image ${each.place + 1}`);
    if (each.place === place) button.setAttribute("aria-current", "true");
    button.onclick = () => look(each.place);
    const image = document.createElement("img");
    image.alt = "";
    image.src = `/image/${each.row}/small`;
    button.append(image);
    const line = document.createElement("li");
    line.append(button);
    return line;
  });
  at("strip").replaceChildren(...buttons);
  const current = at("strip").querySelector("[aria-current]");
  if (current) at("strip").scrollLeft = current.offsetLeft - at("strip").offsetLeft - 90;
}

async function decide(rows, decision, label = "") {
  const from = { rows, view, place };
  try {
    const answers = [];
    for (let first = 0; first < rows.length; first += 200) {
      answers.push(await ask("/api/decisions", { rows: rows.slice(first, first + 200), decision, label }));
    }
    const refused = Object.assign({}, ...answers.map((each) => each.refused));
    const written = rows.filter((row) => !(row in refused));
    if (written.length && decision !== "undo") done.push({ ...from, rows: written });
    const why = Object.values(refused)[0];
    const many = rows.length > 1 ? `${Object.keys(refused).length} of ${rows.length} images were not decided: ` : "Not decided: ";
    return why ? many + why : "";
  } catch (error) {
    return error.message;
  }
}

async function one(decision, label) {
  const item = items.get(place);
  if (!item) return;
  const was = view;
  const wrong = await decide([item.row], decision, label);
  if (was !== view) return;
  const further = !wrong && view !== "decided" && place < total - 1;
  await look(further ? place + 1 : place, !further);
  if (wrong) note(wrong, true);
}

async function all(decision) {
  const section = items.get(place)?.section;
  if (!section) return;
  const wrong = await decide(section.rows, decision);
  await look(Math.min(section.first + section.count, total - 1));
  if (wrong) note(wrong, true);
}

async function undo() {
  const last = done.pop() || (items.get(place) && { rows: [items.get(place).row], view, place });
  if (!last) return;
  const wrong = await decide(last.rows, "undo");
  if (last.view !== view) {
    view = last.view;
    items = new Map();
  }
  await look(view === "decided" ? 0 : last.place, true);
  if (wrong) note(wrong, true);
}

function change(to) {
  if (to === view) return;
  view = to;
  items = new Map();
  return look(view === "decided" ? 0 : -1);
}

function accept() {
  const item = items.get(place);
  return item?.doubt && one("relabel", labels[item.doubt.suggested]);
}

function relabel() {
  if (labels.length < 2 || !items.get(place)) return;
  at("find").value = "";
  classes();
  at("classes").showModal();
  at("find").focus();
}

function found() {
  const wanted = at("find").value.trim().toLowerCase();
  const starts = labels.filter((label) => label.toLowerCase().startsWith(wanted));
  const holds = labels.filter((label) => !starts.includes(label) && label.toLowerCase().includes(wanted));
  return [...starts, ...holds];
}

function classes() {
  at("list").replaceChildren(...found().slice(0, 100).map((label) => {
    const button = made("button", label);
    button.type = "button";
    button.onclick = () => choose(label);
    const line = document.createElement("li");
    line.append(button);
    return line;
  }));
}

function choose(label) {
  at("classes").close();
  if (label) inTurn(() => one("relabel", label))();
}

function made(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

function short(value) {
  const text = Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : value.toPrecision(4);
  return text.replace("-", "−");
}

at("find").addEventListener("input", classes);
at("find").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  choose(found()[0]);
});
at("draw").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await ask("/api/draw", { n: at("n").valueAsNumber || 0 });
    items = new Map();
    await look(0);
  } catch (error) {
    failed(error);
  }
});
let busy = Promise.resolve();
const inTurn = (act) => () => (busy = busy.then(act)); // so that each key or click is about the image that is then shown
const back = () => look(Math.max(0, place - 1));
const next = () => look(Math.max(0, Math.min(total - 1, place + 1)));

for (const button of document.querySelectorAll("#views button")) button.onclick = inTurn(() => change(button.dataset.view));
for (const button of document.querySelectorAll("[data-decide]")) button.onclick = inTurn(() => one(button.dataset.decide));
for (const button of document.querySelectorAll("[data-all]")) button.onclick = inTurn(() => all(button.dataset.all));
for (const [id, act] of Object.entries({ accept, relabel, undo, back, next })) at(id).onclick = inTurn(act);

const KEYS = { k: () => one("keep"), r: () => one("reject"), s: () => one("skip"), l: relabel, y: accept, u: undo, ArrowLeft: back, ArrowRight: next };
VIEWS.forEach((name, index) => (KEYS[index + 1] = () => change(name)));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === at("n") || at("classes").open) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  inTurn(act)();
});

look(-1);
