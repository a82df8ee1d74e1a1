/** Which part of the page a path names. Pure. */

export type Route =
  | { name: "jobs" }
  | { name: "job"; id: string }
  | { name: "deliveries" }
  | { name: "settings" }
  | { name: "unknown" };

export function parse(pathname: string): Route {
  const parts = pathname.split("/").filter(Boolean).map(decoded);
  const [first, second] = parts;
  if (parts.length === 0 || (first === "jobs" && parts.length === 1)) return { name: "jobs" };
  if (first === "jobs" && second !== undefined && parts.length === 2)
    return { name: "job", id: second };
  if (first === "deliveries" && parts.length === 1) return { name: "deliveries" };
  if (first === "settings" && parts.length === 1) return { name: "settings" };
  return { name: "unknown" };
}

/** A badly encoded part is taken as it stands: the server knows no such id and says so. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
