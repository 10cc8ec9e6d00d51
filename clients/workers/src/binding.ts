/** `env.ARTIFACTS` by a wrapper entry point: the Worker itself stays as it is. */

import { clientOf } from "./environment.js";

export type { ArtifactsEnvironment } from "./environment.js";

export interface BindingOptions {
  /** The name of the binding. Default: `ARTIFACTS`. */
  binding?: string;
  /** Default: what ARTIFACTS_NAMESPACE says. */
  namespace?: string;
}

type Handler = (first: unknown, env: object, ...rest: unknown[]) => unknown;
type EntryClass = new (ctx: unknown, env: object) => object;

/**
 * Give a Worker, or an entry class (a Durable Object, a WorkerEntrypoint, a Workflow), the binding.
 *
 *     import worker from "./index.js";
 *     export * from "./index.js";
 *     export default withArtifacts(worker);
 */
export function withArtifacts<Wrapped extends object>(
  worker: Wrapped,
  options: BindingOptions = {},
): Wrapped {
  const { binding = "ARTIFACTS", namespace } = options;
  const extended = (env: object): object => ({ ...env, [binding]: clientOf(env, namespace) });
  if (typeof worker === "function") {
    const Entry = worker as unknown as EntryClass;
    return class extends Entry {
      constructor(ctx: unknown, env: object) {
        super(ctx, extended(env));
      }
    } as unknown as Wrapped;
  }
  const handlers = Object.entries(worker).map(([name, member]: [string, unknown]) => {
    if (typeof member !== "function") return [name, member];
    const handler: Handler = (first, env, ...rest) =>
      (member as Handler).call(worker, first, extended(env), ...rest);
    return [name, handler];
  });
  return Object.fromEntries(handlers) as Wrapped;
}
