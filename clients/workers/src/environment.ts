import { ArtifactsClient } from "./client.js";

/** What a Worker's configuration has to say. */
export interface ArtifactsEnvironment {
  /** The origin of the server. */
  ARTIFACTS_URL: string;
  ARTIFACTS_ACCOUNT_ID: string;
  /** A secret: `wrangler secret put ARTIFACTS_API_TOKEN`, or `.dev.vars`. */
  ARTIFACTS_API_TOKEN: string;
  /** Default: `default`. */
  ARTIFACTS_NAMESPACE?: string;
}

const NEEDED = ["ARTIFACTS_URL", "ARTIFACTS_ACCOUNT_ID", "ARTIFACTS_API_TOKEN"] as const;

/** The client that an environment describes. Throws where something is missing. */
export function clientOf(env: object, namespace?: string): ArtifactsClient {
  const known = env as Partial<ArtifactsEnvironment>;
  const missing = NEEDED.filter((name) => !known[name]);
  if (missing.length) {
    throw new Error(`set ${missing.join(", ")} in the Wrangler configuration or .dev.vars`);
  }
  const { ARTIFACTS_URL, ARTIFACTS_ACCOUNT_ID, ARTIFACTS_API_TOKEN } = known as ArtifactsEnvironment;
  return new ArtifactsClient({
    url: ARTIFACTS_URL,
    accountId: ARTIFACTS_ACCOUNT_ID,
    apiToken: ARTIFACTS_API_TOKEN,
    namespace: namespace ?? known.ARTIFACTS_NAMESPACE ?? "default",
  });
}
