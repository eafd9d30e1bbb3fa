-- /etc/slurm/burst_buffer.lua: refuses a script whose options for sealfs are wrong when it is submitted.
-- slurm.conf: BurstBufferType=burst_buffer/lua.
--
-- Slurm calls it for scripts with a line `#BB_LUA sealfs`, and lets it see the script only: the comment must be in a line
-- `#SBATCH --comment=...` of it. (job_submit.lua sees the command line, too.) It stores nothing and moves nothing: that is
-- done on the job's nodes, by prologue and epilogue.
local options = dofile("/etc/slurm/sealfs/options.lua")

-- The comment that a line of #SBATCH gives, or nil.
local function comment_of(line)
  local rest = line:match("^#SBATCH%s.-%-%-comment[=%s]%s*(.*)$")
  return rest and (rest:match('^"([^"]*)"') or rest:match("^'([^']*)'") or rest:match("^(%S+)"))
end

function slurm_bb_job_process(job_script)
  local script, cause = io.open(job_script, "r")
  if not script then
    return slurm.ERROR, "sealfs: cannot read the script: " .. cause
  end
  local comment
  for line in script:lines() do
    -- The last one holds, as for sbatch, which reads up to the first command.
    if not line:match("^%s*#") and not line:match("^%s*$") then
      break
    end
    comment = comment_of(line) or comment
  end
  script:close()
  local problem = options.problem(comment)
  if problem then
    return slurm.ERROR, problem
  end
  return slurm.SUCCESS
end

-- What Slurm asks for besides: nothing is to be done.
local function nothing()
  return slurm.SUCCESS, ""
end
slurm_bb_pools = nothing
slurm_bb_job_teardown = nothing
slurm_bb_setup = nothing
slurm_bb_data_in = nothing
slurm_bb_test_data_in = nothing
slurm_bb_paths = nothing
slurm_bb_pre_run = nothing
slurm_bb_post_run = nothing
slurm_bb_data_out = nothing
slurm_bb_test_data_out = nothing
slurm_bb_get_status = nothing

function slurm_bb_real_size(job_id)
  return slurm.SUCCESS, "0"
end
