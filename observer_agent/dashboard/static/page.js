// The local page: asks /api/state every two seconds and shows what it says. Whatever comes from outside becomes text,
// never HTML. Rows are patched in place, so that focus, scroll and what is open stay as they are.
"use strict";

(() => {
  const EVERY = 2000;
  const SLOWEST = 10000;
  const PATIENCE = 8000;
  const ROWS_MAX = 500;
  const STATUSES = {
    unhealthy: ["✕", "unhealthy"],
    degraded: ["!", "degraded"],
    no_data: ["?", "no data"],
    not_yet: ["–", "not yet"],
    healthy: ["✓", "healthy"],
  };
  const ORDER = Object.keys(STATUSES);
  const $ = (id) => document.getElementById(id);

  // -- theme: the system's, or what was chosen; set before anything is drawn

  const chosen = () => {
    try {
      return localStorage.getItem("theme") || "";
    } catch {
      return ""; // storage is off: the system's theme
    }
  };

  const dress = (theme) => {
    document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : "";
  };

  const choose = (theme) => {
    dress(theme);
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // it lasts as long as the page
    }
  };

  // -- words

  const count = (n) => Number(n).toLocaleString("en-US");

  const span = (seconds) => {
    if (seconds < 1) return seconds ? `${Math.round(seconds * 1000)} ms` : "0 s";
    for (const [unit, size, below, part] of [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]]) {
      if (seconds >= size) {
        const more = Math.floor((seconds % size) / part);
        return `${Math.floor(seconds / size)} ${unit}${more ? ` ${more} ${below}` : ""}`;
      }
    }
    return `${Math.floor(seconds)} s`;
  };

  const ago = (moment, now) => (moment ? `${span(Math.max(0, Math.floor((now - Date.parse(moment)) / 1000)))} ago` : "never");
  const clock = (moment) => moment.slice(11, 19);
  const stamp = (moment) => (moment ? moment.replace("T", " ").slice(0, 19) : "never");
  const bytes = (n) => (n < 1e3 ? `${n} B` : n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`);
  const value = (v) => (v === null ? "" : Number.isInteger(v) ? count(v) : String(Number(v.toPrecision(6))));
  const took = (ms) => (ms === null ? "" : ms < 1000 ? `${ms.toFixed(1)} ms` : `${(ms / 1000).toFixed(2)} s`);
  const status = (each) => (each.status in STATUSES ? each.status : "not_yet");
  const why = (each) => [each.reason, each.fault && `(${each.fault})`].filter(Boolean).join(" ");
  const name = (each) => each.title || each.id;
  const receiver = (each, fields) => each && [
    each.listens_on ? `on ${each.listens_on}` : "does not listen",
    ...fields.map((field) => `${count(each[field])} ${field}`),
    each.problem,
  ].filter(Boolean).join(", ");
  const losses = (lost) => Object.entries(lost).map(([reason, n]) => `${reason} ${count(n)}`).join(", ") || "none";

  // -- patching

  const put = (node, text) => {
    if (node.firstChild ? node.firstChild.data !== text : text !== "") node.textContent = text;
  };

  const element = (tag, text = "", className = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  const facts = (list, pairs) => {
    const given = pairs.filter(([, text]) => text !== null && text !== "");
    const known = [...list.children].filter((node) => node.tagName === "DT");
    if (known.length !== given.length || given.some(([label], at) => known[at].textContent !== label)) {
      list.replaceChildren(...given.flatMap(([label]) => [element("dt", label), element("dd")]));
    }
    given.forEach(([, text, bad], at) => {
      const node = list.children[2 * at + 1];
      put(node, text);
      node.className = bad ? "bad" : "";
    });
  };

  const pairs = (list, given) => {
    if (list.children.length !== given.length) {
      list.replaceChildren(...given.map(() => {
        const both = element("div");
        both.append(element("dt"), element("dd"));
        return both;
      }));
    }
    given.forEach(([label, text], at) => {
      put(list.children[at].children[0], label);
      put(list.children[at].children[1], text);
    });
  };

  const lines = (body, rows, columns) => {
    while (body.rows.length > rows.length) body.deleteRow(-1);
    rows.forEach((row, at) => {
      const tr = body.rows[at] || body.insertRow();
      row.forEach((text, i) => {
        if (!tr.cells[i]) {
          const cell = element(i ? "td" : "th", "", columns[i]);
          if (!i) cell.scope = "row";
          tr.append(cell);
        }
        put(tr.cells[i], text);
      });
    });
  };

  // Puts the rows into this order and moves as few as it can.
  const arrange = (body, wanted) => {
    let at = body.firstElementChild;
    for (const row of wanted) {
      if (row !== at && at && at.nextElementSibling === row) {
        at.remove();
        at = row;
      }
      if (row === at) at = at.nextElementSibling;
      else body.insertBefore(row, at);
    }
    while (at) {
      const next = at.nextElementSibling;
      at.remove();
      at = next;
    }
  };

  // -- definitions

  const rows = new Map();
  let sorting = { by: "status", down: false };
  let everything = false;
  let latest = null;

  const KEYS = {
    status: (each) => ORDER.indexOf(status(each)),
    title: (each) => name(each).toLowerCase(),
    type: (each) => each.source_type,
    value: (each) => each.value,
    reason: why,
    took: (each) => each.duration_ms,
    last: (each) => (each.last_run_at ? -Date.parse(each.last_run_at) : null),
    next: (each) => each.next_run_in_seconds,
  };

  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === null || a === "") return 1; // nothing goes last, whichever way
    if (b === null || b === "") return -1;
    return (a < b ? -1 : 1) * (sorting.down ? -1 : 1);
  };

  const newRow = (key) => {
    const tr = $("row").content.firstElementChild.cloneNode(true);
    const [state, title, type, number, reason, duration, last, next] = tr.cells;
    const more = title.querySelector("details");
    const row = {
      tr, type, number, reason, duration, last, next, more,
      mark: state.children[0], word: state.children[1], title: title.querySelector("bdi"),
      list: title.querySelector("dl"), why: title.querySelector(".why"), problem: title.querySelector(".problem"), each: null,
    };
    more.addEventListener("toggle", () => open(row));
    rows.set(key, row);
    return row;
  };

  const open = (row) => {
    if (!row.more.open || !row.each) return;
    const each = row.each;
    const phases = Object.entries(each.phases).map(([phase, ms]) => `${phase} ${took(ms)}`).join(", ");
    facts(row.list, [
      ["Id", each.id],
      ["Type", each.source_type],
      ["Value", each.value === null ? "" : String(each.value)],
      ["Reason", each.reason],
      ["Fault", each.fault],
      ["Took", took(each.duration_ms)],
      ["Phases", phases],
      ["Every", span(each.interval_seconds)],
      ["Last run", stamp(each.last_run_at)],
      ["Next run", `in ${span(each.next_run_in_seconds)}`],
      ...Object.entries(each.detail),
    ]);
  };

  const fill = (row, each, now) => {
    const [mark, word] = STATUSES[status(each)];
    row.each = each;
    if (row.tr.dataset.status !== status(each)) row.tr.dataset.status = status(each);
    put(row.mark, mark);
    put(row.word, word);
    put(row.title, name(each));
    put(row.why, why(each));
    put(row.problem, each.problem || "");
    put(row.type, each.source_type);
    put(row.number, value(each.value));
    put(row.reason, why(each));
    put(row.duration, took(each.duration_ms));
    put(row.last, ago(each.last_run_at, now));
    put(row.next, each.next_run_in_seconds ? `in ${span(Math.ceil(each.next_run_in_seconds))}` : "now");
    open(row);
  };

  const wanted = (definitions) => {
    const text = $("filter").value.trim().toLowerCase();
    const only = $("only").value;
    const key = KEYS[sorting.by];
    const hay = (each) => `${name(each)}\n${each.id}\n${each.source_type}\n${why(each)}\n${each.problem || ""}`.toLowerCase();
    return definitions
      .filter((each) => (!only || status(each) === only) && (!text || hay(each).includes(text)))
      .map((each) => [key(each), KEYS.title(each), each])
      .sort((a, b) => compare(a[0], b[0]) || (a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0))
      .map((entry) => entry[2]);
  };

  // While somebody reads or tabs through the table nothing in it changes its place.
  const held = (body) => {
    const selection = document.getSelection();
    return body.contains(document.activeElement) || (!selection.isCollapsed && body.contains(selection.anchorNode));
  };

  const showDefinitions = (byHand) => {
    if (!latest) return;
    const definitions = latest.definitions;
    const now = Date.parse(latest.process.now);
    const body = $("rows");
    const known = new Map(definitions.map((each) => [each.id, each]));
    for (const [key, row] of rows) {
      if (!known.has(key)) {
        row.tr.remove();
        rows.delete(key);
      }
    }
    let chosen = wanted(definitions);
    const found = chosen.length;
    if (!everything) chosen = chosen.slice(0, ROWS_MAX);
    if (!byHand && held(body)) {
      const here = [...rows].filter(([, row]) => row.tr.parentNode).map(([key]) => known.get(key));
      chosen = [...here, ...chosen.filter((each) => !here.includes(each))].slice(0, Math.max(chosen.length, here.length));
      chosen.forEach((each) => fill(rows.get(each.id) || newRow(each.id), each, now));
      chosen.forEach((each) => rows.get(each.id).tr.parentNode || body.append(rows.get(each.id).tr));
    } else {
      chosen.forEach((each) => fill(rows.get(each.id) || newRow(each.id), each, now));
      arrange(body, chosen.map((each) => rows.get(each.id).tr));
    }
    put($("shown"), chosen.length === definitions.length ? `${count(found)}` : `${count(chosen.length)} of ${count(definitions.length)}`);
    $("all").hidden = found <= ROWS_MAX || everything;
    $("none").hidden = found > 0;
    put($("none"), definitions.length ? "No definition matches." : "There are no definitions yet: the cloud, or DEFINITIONS_FILE, says what to watch.");
  };

  const sortBy = (button) => {
    const by = button.dataset.sort;
    sorting = { by, down: sorting.by === by && !sorting.down };
    for (const each of document.querySelectorAll("[data-sort]")) {
      if (each === button) each.parentNode.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
      else each.parentNode.removeAttribute("aria-sort");
    }
    showDefinitions(true);
  };

  // -- the other parts

  const showFacts = (state) => {
    const { process, cloud, queue, otlp, relay, custom_probes: custom } = state;
    const now = Date.parse(process.now);
    put($("host"), process.hostname);
    put($("version"), `observer-agent ${process.version}`);
    document.title = `${cloud.delivering ? "" : "! "}${process.hostname}: observer-agent`;
    facts($("process"), [
      ["Running for", span(Math.floor(process.uptime_seconds))],
      ["Started", stamp(process.started_at)],
      ["Process id", String(process.pid)],
      ["OTLP", receiver(otlp, ["points", "streams"]), otlp && otlp.problem],
      ["Relay", receiver(relay, ["waiting", "delivered"]), relay && relay.problem],
      ["Pings lost", relay && Object.keys(relay.lost).length ? losses(relay.lost) : "", true],
      ["Custom probes", custom.names.length ? `${count(custom.names.length)}: ${custom.names.join(", ")}` : ""],
      ...custom.refused.map((each) => ["Refused probe", `${each.origin}: ${each.problem}`, true]),
    ]);
    facts($("cloud"), [
      ["Address", cloud.url],
      ["Problem", cloud.problem, true],
      ["Failing for", cloud.failing_for_seconds ? span(cloud.failing_for_seconds) : "", true],
      ["Last push", ago(cloud.last_push_at, now)],
      ["Heartbeat", `${ago(cloud.last_heartbeat_at, now)}, ${count(cloud.heartbeats)} answered`],
      ["Definitions", `${ago(cloud.last_definitions_at, now)}${cloud.definitions_version ? `, version ${cloud.definitions_version.slice(0, 12)}` : ""}`],
      ["Definitions problem", cloud.definitions_problem, true],
    ]);
    facts($("queue"), [
      ["Waiting", `${count(queue.depth)} of ${count(queue.capacity)}, ${bytes(queue.bytes)}`],
      ["Oldest", queue.depth ? span(queue.oldest_age_seconds) : "none"],
      ["Delivered", `${count(queue.accepted)} of ${count(queue.given)}`],
      ["Lost", losses(state.losses), Object.keys(state.losses).length > 0],
      ["In memory", queue.kept_in_memory ? `${count(queue.kept_in_memory)}: the file takes none` : "", true],
    ]);
    const fill = $("fill");
    Object.assign(fill, { max: queue.capacity, low: 0.5 * queue.capacity, high: 0.9 * queue.capacity, optimum: 0, value: queue.depth });
    const text = `${count(queue.depth)} of ${count(queue.capacity)}`;
    if (fill.textContent !== text) fill.textContent = text;
  };

  const path = (svg, className, d) => $(svg).querySelector(`.${className}`).setAttribute("d", d);

  const showHistory = ({ depth = [], accepted = [], lost = [] }) => {
    const WIDTH = 180, HEIGHT = 40;
    const x = (at, n) => WIDTH - n + at + 0.5;
    const y = (v, most) => (HEIGHT - 1 - (v / Math.max(most, 1)) * (HEIGHT - 4)).toFixed(2);
    const sum = (list) => list.reduce((a, b) => a + b, 0);
    const n = depth.length;
    const most = Math.max(0, ...depth), busiest = Math.max(0, ...accepted, ...lost);
    const points = depth.map((v, at) => `${x(at, n)} ${y(v, most)}`);
    path("depth", "line", n ? `M${points.join("L")}` : "");
    path("depth", "area", n ? `M${x(0, n)} ${HEIGHT}L${points.join("L")}L${x(n - 1, n)} ${HEIGHT}Z` : "");
    const bars = (list) => list.map((v, at) => (v ? `M${x(at, n)} ${HEIGHT}V${y(v, busiest)}` : "")).join("");
    path("pushes", "bars", bars(accepted));
    path("pushes", "lost", bars(lost));
    put($("depth-text"), n ? `Waiting: ${count(depth[n - 1])}, at most ${count(most)}` : "Waiting: the first point comes within ten seconds");
    put($("pushes-text"), n ? `Delivered: ${count(sum(accepted))}, at most ${count(Math.max(0, ...accepted))} in ten seconds. Lost: ${count(sum(lost))}` : "Delivered: the first point comes within ten seconds");
  };

  const showWorkers = (workers) => {
    const pools = new Map();
    for (const each of workers) {
      const pool = each.name.replace(/^(probe-.+)-\d+$/, "$1");
      pools.set(pool, [...(pools.get(pool) || []), each]);
    }
    const total = (list, field) => count(list.reduce((sum, each) => sum + each[field], 0));
    const condition = (list) => {
      const dead = list.filter((each) => !each.alive).length;
      const hung = list.filter((each) => each.alive && each.hung);
      if (dead) return list.length > 1 ? `✕ ${dead} of ${list.length} dead` : "✕ dead";
      if (hung.length) return `✕ hangs for ${span(Math.max(...hung.map((each) => each.busy_seconds)))}`;
      return list.length > 1 ? `✓ ${list.length} run` : "✓ runs";
    };
    lines($("workers"), [...pools].map(([pool, list]) => [pool, condition(list), total(list, "turns"), total(list, "restarts")]), ["", "", "n", "n"]);
  };

  let lastLine = "";
  const showLog = (log) => {
    const list = $("log");
    const newest = log.length ? JSON.stringify([log.length, log[log.length - 1]]) : "";
    const selection = document.getSelection();
    if (newest === lastLine || (!selection.isCollapsed && list.contains(selection.anchorNode))) return;
    lastLine = newest;
    const top = list.scrollTop;
    list.replaceChildren(...log.slice().reverse().map((line) => {
      const item = element("li");
      const time = element("time", clock(line.timestamp));
      time.dateTime = line.timestamp;
      item.append(time, " ", element("span", line.level.padEnd(5), line.level), " ", element("span", line.message));
      return item;
    }));
    list.scrollTop = top;
  };

  const say = (condition, mark, sentence) => {
    $("state").dataset.state = condition;
    put($("state").firstChild, mark);
    put($("sentence"), sentence);
  };

  const show = (state) => {
    latest = state;
    const good = state.cloud.delivering && state.workers.every((each) => each.alive && !each.hung);
    say(good ? "good" : "bad", good ? "✓" : "✕", state.summary);
    showFacts(state);
    showHistory(state.history);
    showDefinitions(false);
    showWorkers(state.workers);
    showLog(state.log);
    pairs($("configuration"), Object.entries(state.configuration));
  };

  // -- asking

  let timer = 0;
  let asking = false;
  let pause = EVERY;
  let heard = new Date();

  const measure = (begun) => requestAnimationFrame(() => setTimeout(() => {
    performance.clearMeasures("render");
    performance.measure("render", { start: begun });
  }));

  const ask = async () => {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    asking = true;
    try {
      const answer = await fetch("/api/state", { signal: AbortSignal.timeout(PATIENCE) });
      if (answer.status === 401) return location.assign("/login");
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const begun = performance.now();
      show(await answer.json());
      measure(begun);
      [heard, pause] = [new Date(), EVERY];
    } catch (error) {
      if (document.hidden) pause = EVERY;
      else {
        say("gone", "✕", `The agent does not answer since ${clock(heard.toISOString())}. What is below may be old.`);
        pause = Math.min(2 * pause, SLOWEST);
      }
      if (!(error instanceof TypeError && error.message.includes("fetch")) && error.name !== "TimeoutError") console.error(error);
    } finally {
      asking = false;
    }
    timer = setTimeout(ask, pause);
  };

  // -- beginning

  dress(chosen());
  document.addEventListener("DOMContentLoaded", () => {
    if (!$("state")) return; // the login form
    $("theme").value = document.documentElement.dataset.theme;
    $("theme").addEventListener("change", (event) => choose(event.target.value));
    $("filter").addEventListener("input", () => showDefinitions(true));
    $("only").addEventListener("change", () => showDefinitions(true));
    $("all").addEventListener("click", () => {
      everything = true;
      showDefinitions(true);
      $("filter").focus();
    });
    for (const button of document.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sortBy(button));
    document.addEventListener("visibilitychange", ask);
    ask();
  });
})();
