// The rating page: one task at a time. The kernel sends `study` (form, blinded tasks) and `told` (what its file holds); the page sends one message
// a click and calls it saved only when the kernel says so. Every text of a model goes through textContent: it is never read as HTML.

const element = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

function render({ model, el }) {
  const study = model.get("study"), form = study.form, tasks = study.tasks;
  const memory = `ratings:${study.key}`;  // clicks that no kernel has confirmed: {click: message}
  const pending = JSON.parse(localStorage.getItem(memory) || "{}");
  const values = {};  // task -> axis -> value
  let problem = "", place = 0, active = 0, sent = 0, waiting = 0;

  const answersOf = (task) => values[task.task] || {};
  const complete = (task) => answersOf(task).skip === true || form.axes.every((axis) => {
    const value = answersOf(task)[axis.name];
    return Array.isArray(value) ? !value.includes(null) : value !== undefined;
  });
  const optionsOf = (axis) => form.kind === "single" ? Object.keys(axis.options) : ["A", "Tie", "B"];
  const labelOf = (option) => form.kind === "pair" ? { A: "◀ A", Tie: "tie", B: "B ▶" }[option] : option;

  function take(told) {  // the kernel's file first, then what it has not confirmed
    for (const [task, axes] of Object.entries(told)) values[task] = { ...values[task], ...axes };
    for (const click of Object.values(pending)) values[click.task] = { ...values[click.task], [click.axis]: click.value };
  }
  const remember = () => localStorage.setItem(memory, JSON.stringify(pending));

  function post(click) {
    try { model.send(click); } catch (error) { problem = String(error); }
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (Object.keys(pending).length) { problem = problem || "the kernel does not answer: run the cell again"; status(); }
    }, 4000);
  }
  function say(task, axis, value) {
    const click = { click: `${Date.now()}-${sent++}-${Math.random()}`, task: task.task, axis, value };
    values[task.task] = { ...answersOf(task), [axis]: value };
    for (const [name, old] of Object.entries(pending)) if (old.task === click.task && old.axis === axis) delete pending[name];
    pending[click.click] = click;
    remember();
    post(click);
  }
  const sendAgain = () => { problem = ""; Object.values(pending).forEach(post); status(); };

  function choose(axis, value) {
    say(tasks[place], form.axes[axis].name, value);
    const task = tasks[place];
    const next = form.axes.findIndex((each, number) => number > axis && answersOf(task)[each.name] === undefined);
    active = form.kind === "ranking" ? axis : next >= 0 ? next : Math.min(axis + 1, form.axes.length - 1);
    drawAgain();
  }
  function rank(axis, answer, position) {
    const known = answersOf(tasks[place])[form.axes[axis].name] || tasks[place].answers.map(() => null);
    choose(axis, known.map((old, number) => number === answer ? position : old));
  }
  function drawAgain() {  // the button that was clicked is gone: without focus the next key would be a command to JupyterLab
    draw();
    root.focus({ preventScroll: true });
  }
  function go(to) {
    place = Math.max(0, Math.min(tasks.length - 1, to));
    const open = form.axes.findIndex((axis) => answersOf(tasks[place])[axis.name] === undefined);
    active = Math.max(0, open);
    drawAgain();
  }
  const nextOpen = () => {
    const open = [...tasks.keys()].map((step) => (place + 1 + step) % tasks.length).find((number) => !complete(tasks[number]));
    go(open === undefined ? place : open);
  };

  const root = element("div", "rating-page");
  root.tabIndex = 0;
  root.setAttribute("data-lm-suppress-shortcuts", "true");  // JupyterLab would take "1" for a heading and "d d" for deleting the cell
  root.setAttribute("data-jp-suppress-context-menu", "true");
  const bar = element("div", "bar"), body = element("div", "body"), foot = element("div", "foot");
  root.append(bar, body, foot);
  el.append(root);

  function status() {
    const done = tasks.filter(complete).length, left = Object.keys(pending).length;
    const shown = element("span", left && problem ? "problem" : left ? "saving" : "saved",
                          left && problem ? `NOT SAVED (${left}): ${problem}` : left ? "saving ..." : "all saved");
    shown.setAttribute("role", "status");
    const progress = element("progress");
    progress.max = tasks.length;
    progress.value = done;
    const again = element("button", "again", "send again");
    again.onclick = sendAgain;
    bar.replaceChildren(element("strong", "", form.title), progress,
                        element("span", "count", `${place + 1} of ${tasks.length} · ${done} done`), shown, ...(left && problem ? [again] : []));
  }
  function buttons(axis, number) {
    const told = answersOf(tasks[place])[axis.name];
    if (form.kind === "ranking") {
      return tasks[place].answers.map((_, answer) => {
        const line = element("div", "ranks");
        line.append(element("span", "letter", "ABCDEFGHIJ"[answer]), ...tasks[place].answers.map((_, position) => {
          const button = element("button", told && told[answer] === position + 1 ? "option chosen" : "option", String(position + 1));
          button.setAttribute("aria-pressed", String(Boolean(told && told[answer] === position + 1)));
          button.onclick = () => rank(number, answer, position + 1);
          return button;
        }));
        return line;
      });
    }
    return optionsOf(axis).map((option, position) => {
      const button = element("button", told === option ? "option chosen" : "option", labelOf(option));
      button.setAttribute("aria-pressed", String(told === option));
      button.title = `key ${position + 1}`;
      button.onclick = () => choose(number, option);
      return button;
    });
  }
  function draw() {
    if (!tasks.length) { bar.textContent = "Nothing is assigned to this rater."; return; }
    const task = tasks[place], told = answersOf(task);
    const texts = element("div", "texts");
    texts.append(element("h3", "", "Question"), element("p", "question", task.question));
    const answers = element("div", `answers of-${Math.min(task.answers.length, 2)}`);
    task.answers.forEach((text, number) => {
      const box = element("div", "answer");
      box.append(element("h3", "", task.answers.length > 1 ? `Answer ${"ABCDEFGHIJ"[number]}` : "Answer"), element("p", "", text));
      answers.append(box);
    });
    texts.append(answers);
    const axes = element("div", "axes");
    form.axes.forEach((axis, number) => {
      const row = element("div", number === active ? "axis active" : "axis");
      row.title = axis.help;
      const words = element("div", "words");
      words.append(element("span", "asked", axis.question), element("span", "help", axis.help));
      const options = element("div", "options");
      options.append(...buttons(axis, number));
      row.append(words, options);
      row.onmousedown = () => { active = number; };
      axes.append(row);
    });
    const comment = element("textarea");
    comment.placeholder = "comment (c)";
    comment.value = told.comment || "";
    comment.onchange = () => { say(task, "comment", comment.value); status(); };
    axes.append(comment);
    body.replaceChildren(texts, axes);
    const back = element("button", "move", "◀ back (p)"), next = element("button", "move", "next (n) ▶"), open = element("button", "move main", "next open (Enter)");
    const skip = element("button", told.skip ? "move chosen" : "move", "cannot be rated (x)");
    back.onclick = () => go(place - 1);
    next.onclick = () => go(place + 1);
    open.onclick = nextOpen;
    skip.onclick = () => { say(task, "skip", !told.skip); drawAgain(); };
    back.disabled = place === 0;
    next.disabled = place === tasks.length - 1;
    foot.replaceChildren(back, next, open, skip, element("span", "keys", "keys: 1-9 choose · ↑ ↓ question · p n back, next · c comment"));
    status();
  }
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.target.tagName === "TEXTAREA") {
      if (event.key === "Escape") root.focus();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const options = form.kind === "ranking" ? [] : optionsOf(form.axes[active]);
    if (options[Number(event.key) - 1] !== undefined) choose(active, options[Number(event.key) - 1]);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      active = Math.max(0, Math.min(form.axes.length - 1, active + (event.key === "ArrowDown" ? 1 : -1)));
      draw();
    } else if (event.key === "n") go(place + 1);
    else if (event.key === "p") go(place - 1);
    else if (event.key === "Enter" && event.target.tagName !== "BUTTON") nextOpen();
    else if (event.key === "c") root.querySelector("textarea").focus();
    else if (event.key === "x") root.querySelectorAll(".foot .move")[3].click();
    else return;
    event.preventDefault();
  });
  const heard = (message) => {
    if (message.problem) problem = message.problem;
    else { delete pending[message.click]; problem = Object.keys(pending).length ? problem : ""; remember(); }
    status();
  };
  model.on("msg:custom", heard);

  take(model.get("told"));
  const first = tasks.findIndex((task) => !complete(task));
  if (tasks.length) go(first < 0 ? 0 : first); else draw();
  if (Object.keys(pending).length) sendAgain();
  return () => model.off("msg:custom", heard);
}

export default { render };
