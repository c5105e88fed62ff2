-- How Argo CD shows a QuantizationJob. The operator's conditions say it all; this only translates.
-- Without it Argo CD counts the resource as healthy as soon as it is applied.
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "waiting for the operator to see this spec" }
end

local holds = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.status == "True" then
    holds[condition.type] = condition
  end
end

-- The first that holds decides: what a queue holds is both Suspended and Reconciling, and goes on
-- without anybody's doing.
local meanings = {
  { "Complete", "Healthy" },
  { "Failed", "Degraded" },
  { "Stalled", "Degraded" },
  { "Reconciling", "Progressing" },
  { "Suspended", "Suspended" },
}
for _, meaning in ipairs(meanings) do
  local condition = holds[meaning[1]]
  if condition then
    return { status = meaning[2], message = condition.reason .. ": " .. condition.message }
  end
end
return { status = "Progressing", message = "waiting for the operator" }
