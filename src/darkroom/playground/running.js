// Tasks in flight: which of them are followed, and how. Survives a reload.

import * as api from "./api.js";
import { Card } from "./card.js";
import { $, announce, toast } from "./dom.js";

const STORED = "darkroom-running";
const STREAMS = 2; // a browser opens six connections to a server, over all its tabs: the rest must answer clicks
const ASK_MS = 1500; // how often the tasks without a stream are asked after
const ENDED = new Set(["succeeded", "failed", "cancelled"]);

export class Running {
  /** onDone(record): the task has ended; record is GET /v1/tasks/{id}. onDenied(error): it waits for a key, and for resume(). */
  constructor(root, onDone, onDenied) {
    Object.assign(this, { root, onDone, onDenied, timer: null });
    this.tasks = new Map(); // id → {id, prompt, count, card, state, stream}, oldest first; stream: stops it, null: polled
    $("cancel-all").addEventListener("click", () => this.cancelAll());
    document.addEventListener("visibilitychange", () => this.follow());
  }

  resume() {
    for (const { id, prompt, count } of JSON.parse(sessionStorage.getItem(STORED) ?? "[]")) {
      this.show(id, prompt, count);
      this.tasks.get(id).state = "sent";
    }
    this.follow();
  }

  /** A task that is being sent: seen at once, followed when the server has it. */
  show(id, prompt, count) {
    if (this.tasks.has(id)) return;
    const card = new Card(prompt, count, () => this.cancel(id));
    this.tasks.set(id, { id, prompt, count, card, state: "sending", stream: null });
    this.root.prepend(card.element);
    announce(`Started: ${prompt}`);
    this.store();
  }

  sent(id) {
    const task = this.tasks.get(id);
    const unwanted = task.state === "unwanted";
    task.state = "sent";
    this.store();
    this.follow();
    if (unwanted) this.cancel(id);
  }

  async cancel(id) {
    const task = this.tasks.get(id);
    task.card.say("Cancelling");
    if (task.state === "sending") { task.state = "unwanted"; return; } // the server does not know it yet
    try {
      await api.cancel(id);
    } catch (error) {
      toast(error.message);
    }
  }

  cancelAll() {
    for (const id of this.tasks.keys()) this.cancel(id);
  }

  drop(id) {
    const { card, stream } = this.tasks.get(id);
    const focused = card.element.contains(document.activeElement);
    stream?.abort();
    card.element.remove();
    this.tasks.delete(id);
    this.store();
    if (focused) $("generate").focus();
    this.follow();
  }

  store() {
    const kept = [...this.tasks.values()].filter(({ state }) => state === "sent" || state === "denied").map(({ id, prompt, count }) => ({ id, prompt, count }));
    sessionStorage.setItem(STORED, JSON.stringify(kept));
    const all = $("cancel-all");
    if (this.tasks.size < 2 && all === document.activeElement) $("generate").focus();
    all.hidden = this.tasks.size < 2;
    document.title = this.tasks.size ? `(${this.tasks.size}) Darkroom` : "Darkroom";
  }

  /** The oldest tasks get the streams, while somebody looks; the others are asked after. */
  follow() {
    const sent = [...this.tasks.values()].filter(({ state }) => state === "sent");
    const streamed = document.hidden ? [] : sent.slice(0, STREAMS);
    for (const task of sent) {
      if (!streamed.includes(task)) { task.stream?.abort(); task.stream = null; }
      else if (!task.stream) this.stream(task);
    }
    if (sent.length > streamed.length) this.timer ??= setTimeout(() => this.ask(), ASK_MS);
  }

  async stream(task) {
    const stream = task.stream = new AbortController();
    try {
      const record = await api.follow(task.id, (name, data) => task.card.event(name, data), stream.signal);
      if (record) this.done(task, record);
    } catch (error) {
      this.failed(task, error);
    }
  }

  // One after the other: together they would take the connections that streams leave.
  async ask() {
    for (const task of [...this.tasks.values()].filter(({ state, stream }) => state === "sent" && !stream)) {
      try {
        const record = await api.task(task.id);
        if (ENDED.has(record.status)) this.done(task, record);
        else if (!task.stream) task.card.record(record);
      } catch (error) {
        this.failed(task, error);
      }
    }
    this.timer = null;
    this.follow();
  }

  done(task, record) {
    if (this.tasks.get(task.id) !== task) return; // it was asked after when its stream told the end
    this.drop(task.id);
    if (record.status === "succeeded") announce(`Ready: ${task.prompt}`);
    this.onDone(record);
  }

  failed(task, error) {
    if (this.tasks.get(task.id) !== task) return;
    if (error.status === 401 || error.status === 403) {
      Object.assign(task, { state: "denied", stream: null });
      task.card.say("Waiting for the key");
      this.follow();
      this.onDenied(error);
    } else if (error.status === 0 || error.status >= 500) task.card.event("offline");
    else {
      toast(error.message);
      this.drop(task.id);
    }
  }
}
