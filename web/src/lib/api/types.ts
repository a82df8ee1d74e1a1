/**
 * The shapes the page works with, read off the paths of the OpenAPI file, so that
 * a schema renamed by the server changes nothing here.
 */
import type { paths } from "./schema";

type Json<R> = R extends { content: { "application/json": infer B } } ? B : never;
type Defined<T> = Exclude<T, undefined>;

export type SessionInfo = Json<paths["/api/v1/session"]["get"]["responses"][200]>;
export type IssuedToken = Json<paths["/api/v1/session/dev"]["post"]["responses"][200]>;
export type Me = Json<paths["/api/v1/me"]["get"]["responses"][200]>;
export type JobPage = Json<paths["/api/v1/jobs"]["get"]["responses"][200]>;
export type Job = JobPage["items"][number];
export type JobStatus = Job["status"];
export type TaccSystem = Job["tacc_system"];
export type Priority = Job["priority"];
export type ResourceRequest = Job["resource_request"];
export type JobRequest =
  paths["/api/v1/jobs"]["post"]["requestBody"]["content"]["application/json"];
export type JobQuery = Defined<paths["/api/v1/jobs"]["get"]["parameters"]["query"]>;
export type JobSummary = Json<paths["/api/v1/jobs/summary"]["get"]["responses"][200]>;
export type Agent = Json<paths["/api/v1/agents"]["get"]["responses"][200]>["items"][number];
export type Dataset = Agent["datasets"][number];
export type EventPage = Json<paths["/api/v1/jobs/{id}/events"]["get"]["responses"][200]>;
export type GatewayEvent = EventPage["items"][number];
export type SampleSeries = Json<paths["/api/v1/jobs/{id}/metrics"]["get"]["responses"][200]>;
export type Sample = SampleSeries["items"][number];
export type DeliveriesPage = Json<paths["/api/v1/jobs/{id}/deliveries"]["get"]["responses"][200]>;
export type EventDeliveries = DeliveriesPage["items"][number];
export type Leg = EventDeliveries["legs"][number];
export type LegState = Leg["state"];

export const JOB_STATUSES = ["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"] as const;
export const TACC_SYSTEMS = ["frontera", "stampede3", "lonestar6", "other"] as const;
export const PRIORITIES = ["low", "normal", "high"] as const;
export const ROLES = ["user", "worker", "operator", "auditor"] as const;
