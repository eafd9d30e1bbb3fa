-- Checks a job's options for sealfs, as `sealfs job up --slurm` reads them. Used by burst_buffer.lua and job_submit.lua.
--
--   --comment="sealfs:size=200G,chunk=1M,stage_in=/project/in:data,stage_out=results:/project/out"
--
-- They are one word of the comment: no blanks and no `;`, which end it, and no commas within a path.
local M = {}

local KIB = { [""] = 1 / 1024, K = 1, M = 1024, G = 1024 ^ 2, T = 1024 ^ 3 }

-- KiB of `200G`, or nil.
local function kib(text)
  local number, unit = text:upper():match("^(%d+)([KMGT]?)$")
  return number and tonumber(number) * KIB[unit]
end

-- Whether `path` is within the job's file system and stays there.
local function is_inside(path)
  return path ~= "" and not ("/" .. path .. "/"):find("/../", 1, true)
end

-- Each takes an option's value and says what is wrong with it, or nil.
local checks = {
  size = function(value)
    if (kib(value) or 0) < 256 * 1024 then
      return "size=" .. value .. ": write at least 256M on each node, as size=200G"
    end
  end,
  chunk = function(value)
    local size = kib(value)
    if not (size == 64 or size == 128 or size == 256 or size == 512 or size == 1024) then
      return "chunk=" .. value .. ": use 64K, 128K, 256K, 512K or 1M"
    end
  end,
  stage_in = function(value)
    local source, target = value:match("^([^:]*):([^:]*)$")
    source = source or value
    if source:sub(1, 1) ~= "/" or source:find(":", 1, true) then
      return "stage_in=" .. value .. ": write stage_in=/absolute/source or stage_in=/absolute/source:target"
    end
    if target and not is_inside(target) then
      return "stage_in=" .. value .. ": the target is a path within the job's file system, without .."
    end
  end,
  stage_out = function(value)
    local source, target = value:match("^([^:]*):([^:]*)$")
    if not source or target:sub(1, 1) ~= "/" then
      return "stage_out=" .. value .. ": write stage_out=source:/absolute/target"
    end
    if not is_inside(source) then
      return "stage_out=" .. value .. ": the source is a path within the job's file system, without .."
    end
  end,
}
local repeatable = { stage_in = true, stage_out = true }

-- The options in a comment, or nil if there are none.
function M.options(comment)
  for word in (comment or ""):gmatch("[^%s;]+") do
    local options = word:match("^sealfs:(.*)$")
    if options then
      return options
    end
  end
end

-- What is wrong with the options in a comment, or nil.
function M.problem(comment)
  local options = M.options(comment)
  if not options then
    return nil
  end
  local seen = {}
  for option in (options .. ","):gmatch("([^,]*),") do
    local name, value = option:match("^([^=]*)=(.*)$")
    local check = name and checks[name]
    local problem
    if not check then
      problem = "unknown option `" .. option .. "`; there are size=, chunk=, stage_in= and stage_out="
    elseif seen[name] and not repeatable[name] then
      problem = name .. "= is there twice"
    else
      problem = check(value)
    end
    if problem then
      return "sealfs: " .. problem
    end
    seen[name] = true
  end
end

return M
