/** What of the runtime the service uses. */
declare module "cloudflare:workers" {
  export abstract class WorkerEntrypoint<Env = unknown, Props = unknown> {
    protected env: Env;
    protected ctx: { readonly props?: Props };
    constructor(ctx: unknown, env: Env);
  }
}
