-- /etc/slurm/job_submit.lua: refuses a job whose options for sealfs are wrong when it is submitted, whether they are in its
-- script or on the command line. slurm.conf: JobSubmitPlugins=lua. A site that has one adds the call to its own.
local options = dofile("/etc/slurm/sealfs/options.lua")

local function problem_of(job)
  local problem = options.problem(job.comment)
  if not problem and options.options(job.comment) and not (job.features or ""):find("sealfs", 1, true) then
    problem = "sealfs: options without --constraint=sealfs: no file system would be started"
  end
  return problem
end

function slurm_job_submit(job, partitions, uid)
  local problem = problem_of(job)
  if problem then
    slurm.log_user("%s", problem)
    return slurm.ERROR
  end
  return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
  -- Only what is being changed is in `job`.
  local problem = options.problem(job.comment)
  if problem then
    slurm.log_user("%s", problem)
    return slurm.ERROR
  end
  return slurm.SUCCESS
end
