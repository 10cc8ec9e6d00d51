export { ArtifactsClient } from "./client.js";
export type { ArtifactsOptions } from "./connection.js";
export { ArtifactsError } from "./errors.js";
export type * from "./types.js";
