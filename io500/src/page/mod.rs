//! A page of all runs: one HTML file with everything in it, that needs no network.
//!
//! Newest run first in words, oldest first in charts. Runs of the official program and our own are never compared with
//! each other: each is set against the last run of its kind, if that was of the same shape.
//!
//! 1. All text from records is escaped.
//! 2. Without scripts the page shows the same; the script adds the choice of light and dark.

mod chart;

use std::fmt::Write;

use chart::{Frame, Point, Series, direction, lines, number, ratios};

use crate::archive::Runs;
use crate::phase::{Group, Phase};
use crate::record::{Kind, Record};

/// The page of these runs.
pub(crate) fn render(runs: &Runs) -> String {
    let Runs { records, damaged } = runs;
    // A page of a thousand runs would be read by nobody.
    let runs = &records[records.len().saturating_sub(RUNS_MAX)..];
    let mut body = String::new();
    match runs.last() {
        None => body += "<main><p class=\"empty\">There are no runs yet.</p></main>",
        Some(newest) => {
            let last = last_before(runs, runs.len() - 1);
            body += &head(newest, comparable(newest, last), runs.len());
            body += "<main>";
            body += &score_section(runs);
            if let Some(last) = last {
                body += &ratio_section(newest, last);
            }
            body += &phases_section(runs);
            body += &table_section(runs);
            body += &runs_section(runs);
            body += "</main>";
        }
    }
    if !damaged.is_empty() {
        let names = damaged.iter().map(|error| format!("<li>{}</li>", escape(&error.to_string())));
        let _ = write!(
            body,
            "<aside class=\"card\"><h2>Runs that cannot be read</h2><ul>{}</ul></aside>",
            names.collect::<String>()
        );
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>IO500 runs</title>\n<style>\n{}</style>\n</head>\n<body>\n{body}\n\
         <footer>Score: √(geometric mean of 4 bandwidths × geometric mean of 8 metadata rates). The random read does \
         not count. Made by sealfs.</footer>\n<script>\n{}</script>\n</body>\n</html>\n",
        include_str!("style.css"),
        include_str!("script.js")
    )
}

/// `<`, `>`, `&` and quotes as entities.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn head(newest: &Record, last: Option<&Record>, count: usize) -> String {
    let runs = if count == 1 { "1 run".to_owned() } else { format!("{count} runs") };
    let mut html = format!(
        "<header><div class=\"bar\"><h1>IO500</h1><span class=\"count\">{runs}</span>\
         <button id=\"theme\" type=\"button\" aria-label=\"Light or dark\" hidden>◐</button></div>\
         <div class=\"newest\"><p class=\"what\">Newest run · {} · {}</p>",
        escape(&moment(newest)),
        escape(&shape(newest)),
    );
    html += "<div class=\"figures\">";
    match &newest.score {
        Some(score) => {
            let earlier = last.and_then(|last| last.score);
            let figures = [
                ("Score", score.total, "", earlier.map(|of| of.total)),
                ("Bandwidth", score.bandwidth, "GiB/s", earlier.map(|of| of.bandwidth)),
                ("Metadata", score.metadata, "kIOPS", earlier.map(|of| of.metadata)),
            ];
            for (name, value, unit, against) in figures {
                let _ = write!(
                    html,
                    "<div class=\"figure\"><span class=\"name\">{name}</span><span class=\"number\">{}</span>\
                     <span class=\"unit\">{unit}</span>{}</div>",
                    number(value),
                    change(value, against)
                );
            }
        }
        None => {
            html += "<div class=\"figure\"><span class=\"name\">Score</span><span class=\"number\">none</span>\
                         <span class=\"unit\">phases are missing</span></div>";
        }
    }
    html += "</div>";
    html += &verdict(newest);
    html + "</div></header>"
}

/// Whether it can be submitted, and why not.
fn verdict(run: &Record) -> String {
    if run.is_submittable() {
        return "<p class=\"verdict yes\"><strong>Submittable</strong> by the rules that are checked here.</p>".into();
    }
    let reasons: Vec<String> =
        run.reasons.iter().map(|reason| format!("<li>{}</li>", escape(reason))).collect();
    format!(
        "<div class=\"verdict no\"><strong>{}</strong><ul>{}</ul></div>",
        label(run),
        reasons.concat()
    )
}

fn label(run: &Record) -> &'static str {
    match run.kind {
        Kind::Own => "NO OFFICIAL SCORE",
        Kind::Official(_) if run.is_submittable() => "SUBMITTABLE",
        Kind::Official(_) => "NOT SUBMITTABLE",
    }
}

fn score_section(runs: &[Record]) -> String {
    let frame = Frame { width: 1_080.0, height: 300.0, left: 60.0, bottom: 34.0, axes: true };
    let value = |run: &Record| run.score.map(|score| score.total);
    let labels: Vec<String> = runs.iter().map(moment).collect();
    let svg = lines(&frame, "Score over runs", &series(runs, "Score", value), &labels);
    format!(
        "<section class=\"card\" id=\"score\"><h2>Score over runs</h2>{}{svg}</section>",
        legend(runs)
    )
}

fn legend(runs: &[Record]) -> String {
    let mut html = "<p class=\"legend\">".to_owned();
    if runs.iter().any(|run| run.kind != Kind::Own) {
        html += "<span class=\"key official\">official program</span>";
    }
    if runs.iter().any(|run| run.kind == Kind::Own) {
        html += "<span class=\"key own\">our own workers (no official score)</span>";
    }
    if runs.iter().any(|run| !run.is_submittable()) {
        html += "<span class=\"key hollow\">hollow: not submittable</span>";
    }
    html + "</p>"
}

fn ratio_section(newest: &Record, last: &Record) -> String {
    let differences = newest.differences(last);
    if !differences.is_empty() {
        return format!(
            "<section class=\"card\" id=\"ratios\"><h2>Newest run against the last of its kind</h2>\
             <p class=\"hint\">{} is not compared with {}: {}.</p></section>",
            escape(&moment(newest)),
            escape(&moment(last)),
            escape(&differences.join("; "))
        );
    }
    let mut rows: Vec<(String, f64)> = Vec::new();
    for outcome in &newest.results {
        let earlier = last.value(outcome.phase).unwrap_or(f64::NAN);
        rows.push((outcome.phase.name().into(), outcome.value / earlier));
    }
    if let (Some(now), Some(earlier)) = (newest.score, last.score) {
        rows.push(("score".into(), now.total / earlier.total));
    }
    format!(
        "<section class=\"card\" id=\"ratios\"><h2>Newest run against the last of its kind</h2>\
         <p class=\"hint\">{} against {}. To the right is faster.</p>{}</section>",
        escape(&moment(newest)),
        escape(&moment(last)),
        ratios(&rows)
    )
}

fn phases_section(runs: &[Record]) -> String {
    let mut html = "<section id=\"phases\"><h2>Each phase over runs</h2>".to_owned();
    for (group, name) in [
        (Group::Bandwidth, "Bandwidth"),
        (Group::Metadata, "Metadata"),
        (Group::Extra, "Not in the score"),
    ] {
        let _ = write!(html, "<h3>{name}</h3><div class=\"phases\">");
        for phase in Phase::ALL.into_iter().filter(|phase| phase.group() == group) {
            html += &phase_card(runs, phase);
        }
        html += "</div>";
    }
    html + "</section>"
}

fn phase_card(runs: &[Record], phase: Phase) -> String {
    let frame = Frame { width: 300.0, height: 84.0, left: 12.0, bottom: 10.0, axes: false };
    let labels: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
    let newest = &runs[runs.len() - 1];
    let value = newest.value(phase);
    let last = comparable(newest, last_before(runs, runs.len() - 1));
    let against = last.and_then(|last| last.value(phase));
    format!(
        "<div class=\"card phase\"><h4>{phase}</h4><p><span class=\"number\">{}</span> <span class=\"unit\">{}</span> {}</p>{}</div>",
        value.map_or_else(|| "–".into(), number),
        phase.unit(),
        value.map_or_else(String::new, |value| change(value, against)),
        lines(&frame, phase.name(), &series(runs, phase.name(), |run| run.value(phase)), &labels)
    )
}

fn series(runs: &[Record], name: &str, value: impl Fn(&Record) -> Option<f64>) -> Vec<Series> {
    let of = |class, is_own: bool| {
        let mine = runs.iter().enumerate().filter(|(_, run)| (run.kind == Kind::Own) == is_own);
        let points = mine.filter_map(|(at, run)| {
            let value = value(run)?;
            let title = format!("{name} {} · {} · {}", number(value), moment(run), shape(run));
            Some(Point { at, value, title, hollow: !run.is_submittable() })
        });
        Series { class, points: points.collect() }
    };
    vec![of("official", false), of("own", true)]
}

fn table_section(runs: &[Record]) -> String {
    let shown: Vec<&Record> = runs.iter().rev().take(COLUMNS_MAX).collect();
    let mut html = "<section class=\"card\" id=\"table\"><h2>Figures</h2><div class=\"wide\"><table><thead><tr>\
                    <th scope=\"col\">phase</th><th scope=\"col\">unit</th>"
        .to_owned();
    for run in &shown {
        let kind = if run.kind == Kind::Own { "own" } else { "official" };
        let _ = write!(
            html,
            "<th scope=\"col\" class=\"number\"><span class=\"key {kind}\">{kind}</span><br>{}</th>",
            escape(&moment(run))
        );
    }
    html += "</tr></thead><tbody>";
    for phase in Phase::ALL {
        let values = shown.iter().map(|run| {
            let outcome = run.results.iter().find(|outcome| outcome.phase == phase);
            outcome.map(|outcome| (outcome.value, outcome.invalid))
        });
        html += &row(phase.name(), phase.unit(), "", values);
    }
    let of = |pick: fn(&crate::Score) -> f64| {
        shown.iter().map(move |run| run.score.as_ref().map(|score| (pick(score), false)))
    };
    html += &row("bandwidth", "GiB/s", "sum", of(|score| score.bandwidth));
    html += &row("metadata", "kIOPS", "sum", of(|score| score.metadata));
    html += &row("score", "", "sum total", of(|score| score.total));
    html + "</tbody></table></div></section>"
}

fn row(
    name: &str,
    unit: &str,
    class: &str,
    values: impl Iterator<Item = Option<(f64, bool)>>,
) -> String {
    let mut html = format!("<tr class=\"{class}\"><th scope=\"row\">{name}</th><td>{unit}</td>");
    for value in values {
        let (text, class) = match value {
            None => ("–".into(), "number"),
            Some((value, false)) => (number(value), "number"),
            Some((value, true)) => (number(value) + " ⚠", "number invalid"),
        };
        let _ = write!(html, "<td class=\"{class}\">{text}</td>");
    }
    html + "</tr>"
}

fn runs_section(runs: &[Record]) -> String {
    let mut html =
        "<section class=\"card\" id=\"runs\"><h2>Runs</h2><ol class=\"runs\">".to_owned();
    for run in runs.iter().rev() {
        let class = if run.is_submittable() { "yes" } else { "no" };
        let reasons: Vec<String> =
            run.reasons.iter().map(|reason| format!("<li>{}</li>", escape(reason))).collect();
        let about = if run.about.is_empty() {
            String::new()
        } else {
            format!(" · {}", escape(&run.about))
        };
        let score = run.score.map_or_else(|| "no score".into(), |score| number(score.total));
        let _ = write!(
            html,
            "<li><div><strong>{}</strong> <span class=\"badge {class}\">{}</span> <span class=\"score\">{score}</span></div>\
             <p class=\"hint\">{}{about}</p><ul>{}</ul></li>",
            escape(&moment(run)),
            label(run),
            escape(&shape(run)),
            reasons.concat()
        );
    }
    html + "</ol></section>"
}

/// The newest run before `at` of its kind.
fn last_before(runs: &[Record], at: usize) -> Option<&Record> {
    runs[..at].iter().rfind(|run| run.kind.is_own() == runs[at].kind.is_own())
}

/// `last`, unless it was of another shape.
fn comparable<'a>(newest: &Record, last: Option<&'a Record>) -> Option<&'a Record> {
    last.filter(|last| newest.differences(last).is_empty())
}

fn change(value: f64, against: Option<f64>) -> String {
    let Some(earlier) = against.filter(|earlier| *earlier > 0.0) else { return String::new() };
    let ratio = value / earlier;
    let arrow = match direction(ratio) {
        "better" => "▲",
        "worse" => "▼",
        _ => "•",
    };
    format!("<span class=\"change {}\">{arrow} ×{ratio:.2}</span>", direction(ratio))
}

/// When it began, for people.
fn moment(run: &Record) -> String {
    match run.id.split_once('_') {
        Some((day, time)) => {
            format!("{day} {}", time.replace('.', ":").chars().take(5).collect::<String>())
        }
        None => run.id.clone(),
    }
}

/// With what it ran.
fn shape(run: &Record) -> String {
    let plural = |count: u64, one: &str| {
        if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
    };
    let (program, clients) = match &run.kind {
        Kind::Own => ("own workers".to_owned(), plural(run.clients, "mount")),
        Kind::Official(version) => (version.clone(), plural(run.clients, "client")),
    };
    let workers = plural(run.workers, "process").replace("processs", "processes");
    format!("{program} · {clients} · {workers} · stonewall {} s", run.stonewall_seconds)
}

/// Runs on the page.
const RUNS_MAX: usize = 100;
/// Runs in the table of figures.
const COLUMNS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Outcome;

    fn run(kind: Kind, started: u64, factor: f64) -> Record {
        let value = |(at, phase)| Outcome::new(phase, (at as f64 + 1.0) * factor, 300.0);
        let mut run =
            Record::new(kind, started, Phase::ALL.into_iter().enumerate().map(value).collect());
        run.reasons = vec!["because <b>".into()];
        run
    }

    fn page_of(runs: &[Record]) -> String {
        render(&Runs { records: runs.to_vec(), damaged: Vec::new() })
    }

    #[test]
    fn a_run_of_another_shape_is_shown_without_ratios_and_with_what_differs() {
        let mut runs = [run(Kind::Own, 1_000, 1.0), run(Kind::Own, 90_000, 2.0)];
        assert!(page_of(&runs).contains("×2.00"));
        runs[1].system.transport = "<rdma>".into();
        let page = page_of(&runs);
        assert!(!page.contains("×2.00"), "{page}");
        assert!(page.contains("transport unknown then, &lt;rdma&gt; now"), "{page}");
    }

    #[test]
    fn a_page_shows_every_phase_of_every_run_and_nothing_unescaped() {
        let official = || Kind::Official("io500-<script>".into());
        let runs = [
            run(official(), 1_000, 1.0),
            run(Kind::Own, 90_000, 0.5),
            run(official(), 200_000, 2.0),
        ];
        let page = page_of(&runs);
        // The score, the ratios, and one per phase.
        assert_eq!(page.matches("<svg").count(), 2 + Phase::ALL.len());
        assert_eq!(page.matches("<circle").count(), runs.len() * (1 + Phase::ALL.len()));
        for phase in Phase::ALL {
            assert!(page.contains(&format!("<h4>{phase}</h4>")), "{phase}");
        }
        assert!(page.contains("because &lt;b&gt;") && page.contains("io500-&lt;script&gt;"));
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("NOT SUBMITTABLE") && page.contains("NO OFFICIAL SCORE"));
        // Against the official run before it, not against our own.
        assert!(page.contains("×2.00") && !page.contains("×4.00</text>"));
    }

    #[test]
    fn a_page_asks_nothing_of_the_network() {
        let page = page_of(&[run(Kind::Own, 1_000, 1.0)]);
        for word in ["http:", "https:", "src=", "@import", "url(", "<link"] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn no_runs_and_runs_without_results_make_a_page_too() {
        assert!(page_of(&[]).contains("no runs yet"));
        let page = page_of(&[Record::new(Kind::Own, 1, Vec::new())]);
        assert!(page.contains("phases are missing") && !page.contains("NaN"));
    }
}
