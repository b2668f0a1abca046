// Changes of jobs, from the stream: whoever shows jobs reads them again at once.
import { link } from "./link.svelte";

/** Call `changed` at every event about a job, at most twice a second; call during a component's setup. */
export function onJobs(changed: () => void): void {
  $effect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const subscription = link.client.subscribe({ topics: ["job"] }, () => {
      timer ??= setTimeout(() => {
        timer = undefined;
        changed();
      }, 500);
    });
    subscription.ready.catch(() => undefined);
    return () => {
      clearTimeout(timer);
      void subscription.unsubscribe().catch(() => undefined);
    };
  });
}
