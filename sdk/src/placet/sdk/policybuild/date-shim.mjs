// Date over the task's timestamp: what `placet policy build` puts in front of JavaScript made for Newton, whose world has no clock.
// Milliseconds, the same at every operator, standing still during a run. Everything but "now" is the engine's own Date.
import { nowMillis as __placetNowMillis } from "placet:policydata/clock@1.0.0";
globalThis.Date = ((Own) => {
    const now = () => Number(__placetNowMillis());
    const Task = new Proxy(Own, {
        construct: (target, args, made) => Reflect.construct(target, args.length === 0 ? [now()] : args, made === Task ? target : made),
        apply: () => new Own(now()).toString(),
        get: (target, name) => (name === "now" ? now : Reflect.get(target, name)),
    });
    Object.defineProperty(Own.prototype, "constructor", { value: Task, writable: true, configurable: true });
    return Task;
})(globalThis.Date);
