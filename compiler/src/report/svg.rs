//! Figures as SVG text: charts with axes, and heat maps. No script, no style sheet, no font of its own, so that a figure
//! looks the same in the page, in a file and on paper.
//!
//! It knows numbers and names; what they mean is [`super::figures`]'s business.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 52.0;
const FONT: &str = "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\"";
const INK: &str = "#1f2933";
const FAINT: &str = "#d9dee4";
const MUTED: &str = "#5b6875";

/// Colors that people with any color vision tell apart (Okabe and Ito), the strongest first.
const COLORS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7a4fbf", "#444444",
];

/// A color of a series.
pub(crate) fn color(index: usize) -> &'static str {
    COLORS[index % COLORS.len()]
}

/// How an axis divides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// Powers of two: context lengths.
    Binary,
}

/// One axis.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) scale: Scale,
    /// Bounds that the data may widen.
    pub(crate) least: Option<f64>,
    pub(crate) most: Option<f64>,
}

impl Axis {
    pub(crate) fn new(label: &str, scale: Scale) -> Self {
        Self {
            label: label.to_owned(),
            scale,
            least: None,
            most: None,
        }
    }

    pub(crate) fn from_zero(label: &str) -> Self {
        Self {
            least: Some(0.0),
            ..Self::new(label, Scale::Linear)
        }
    }
}

/// One point, with an interval of y if it has one.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) interval: Option<(f64, f64)>,
    /// What a pointer is told.
    pub(crate) note: String,
}

/// Points that belong together.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
    pub(crate) color: &'static str,
    pub(crate) line: bool,
    pub(crate) markers: bool,
    pub(crate) dashed: bool,
    /// Radius of markers.
    pub(crate) radius: f64,
}

impl Series {
    pub(crate) fn line(name: &str, index: usize, points: Vec<Point>) -> Self {
        Self {
            name: name.to_owned(),
            points,
            color: color(index),
            line: true,
            markers: true,
            dashed: false,
            radius: 3.0,
        }
    }
}

/// A chart with two axes and a legend.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// Text as it may stand in a page or an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // No control character may stand in XML.
            char if char.is_control() && char != '\n' => escaped.push(' '),
            char => escaped.push(char),
        }
    }
    escaped
}

/// A number for people: few digits, no needless zeros.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    let text = if value == 0.0 {
        "0".into()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.1e}")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    };
    if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// A length for people: 4096 is 4k.
pub(crate) fn tokens(value: f64) -> String {
    let k = value / 1024.0;
    if k >= 1.0 && k.fract() == 0.0 {
        format!("{k}k")
    } else {
        number(value)
    }
}

/// The lowest and highest value, and round values between.
struct Ticks {
    low: f64,
    high: f64,
    at: Vec<f64>,
}

fn ticks(axis: &Axis, values: impl Iterator<Item = f64> + Clone) -> Ticks {
    let fold = |start: f64, pick: fn(f64, f64) -> f64| {
        values
            .clone()
            .filter(|value| value.is_finite())
            .fold(start, pick)
    };
    let low = fold(axis.least.unwrap_or(f64::INFINITY), f64::min);
    let high = fold(axis.most.unwrap_or(f64::NEG_INFINITY), f64::max);
    if !(low.is_finite() && high.is_finite()) {
        return Ticks {
            low: 0.0,
            high: 1.0,
            at: vec![0.0, 1.0],
        };
    }
    if axis.scale == Scale::Binary {
        let (first, last) = (low.max(1.0).log2().floor(), high.max(1.0).log2().ceil());
        let last = last.max(first + 1.0);
        let mut at = Vec::new();
        let mut power = first;
        while power <= last {
            at.push(power.exp2());
            power += 1.0;
        }
        return Ticks {
            low: first.exp2(),
            high: last.exp2(),
            at,
        };
    }
    let high = if high > low {
        high
    } else {
        low + low.abs().max(1.0)
    };
    let raw = (high - low) / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= raw * 0.999)
        .unwrap_or(raw);
    let (first, last) = ((low / step).floor(), (high / step - 1e-9).ceil());
    let mut at = Vec::new();
    let mut count = first;
    while count <= last {
        at.push(count * step);
        count += 1.0;
    }
    Ticks {
        low: first * step,
        high: last * step,
        at,
    }
}

impl Chart {
    /// The figure. `title` is for readers that do not see.
    pub(crate) fn render(&self, title: &str) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = ticks(&self.x, points().map(|point| point.x));
        let all_y = points().flat_map(|point| {
            let (low, high) = point.interval.unwrap_or((point.y, point.y));
            [point.y, low, high]
        });
        let y = ticks(&self.y, all_y);
        let place = |axis: &Axis, ticks: &Ticks, value: f64| -> f64 {
            let map = |value: f64| match axis.scale {
                Scale::Linear => value,
                Scale::Binary => value.max(1.0).log2(),
            };
            (map(value) - map(ticks.low)) / (map(ticks.high) - map(ticks.low))
        };
        let px = |value: f64| LEFT + place(&self.x, &x, value) * (WIDTH - LEFT - RIGHT);
        let py = |value: f64| HEIGHT - BOTTOM - place(&self.y, &y, value) * (HEIGHT - TOP - BOTTOM);
        let mut svg = open(WIDTH, HEIGHT, title);
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &at in &y.at {
            let _ = write!(
                svg,
                r#"<line x1="{LEFT}" y1="{0:.1}" x2="{right}" y2="{0:.1}" stroke="{FAINT}"/><text x="{1}" y="{2:.1}" text-anchor="end" fill="{MUTED}">{3}</text>"#,
                py(at),
                LEFT - 8.0,
                py(at) + 4.0,
                number(at)
            );
        }
        for &at in &x.at {
            let text = if self.x.scale == Scale::Binary {
                tokens(at)
            } else {
                number(at)
            };
            let _ = write!(
                svg,
                r#"<line x1="{0:.1}" y1="{bottom}" x2="{0:.1}" y2="{1}" stroke="{MUTED}"/><text x="{0:.1}" y="{2}" text-anchor="middle" fill="{MUTED}">{text}</text>"#,
                px(at),
                bottom + 5.0,
                bottom + 20.0,
            );
        }
        let _ = write!(
            svg,
            r#"<line x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="{MUTED}"/><text x="{}" y="{}" text-anchor="middle" fill="{INK}">{}</text><text transform="translate(16 {}) rotate(-90)" text-anchor="middle" fill="{INK}">{}</text>"#,
            f64::midpoint(LEFT, right),
            HEIGHT - 10.0,
            escape(&self.x.label),
            f64::midpoint(TOP, bottom),
            escape(&self.y.label)
        );
        for series in &self.series {
            draw(&mut svg, series, &px, &py);
        }
        for (row, series) in self
            .series
            .iter()
            .filter(|series| !series.name.is_empty())
            .enumerate()
        {
            legend(&mut svg, series, row, right + 20.0);
        }
        svg.push_str("</svg>");
        svg
    }
}

fn open(width: f64, height: f64, title: &str) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" {FONT} font-size="12"><title>{0}</title><rect width="{width}" height="{height}" fill="#ffffff"/>"##,
        escape(title)
    )
}

fn draw(svg: &mut String, series: &Series, px: &dyn Fn(f64) -> f64, py: &dyn Fn(f64) -> f64) {
    let color = series.color;
    let dash = if series.dashed {
        r#" stroke-dasharray="5 4""#
    } else {
        ""
    };
    if series.line {
        let path: Vec<String> = series
            .points
            .iter()
            .filter(|point| point.y.is_finite())
            .map(|point| format!("{:.1},{:.1}", px(point.x), py(point.y)))
            .collect();
        let _ = write!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="2"{dash}/>"#,
            path.join(" ")
        );
    }
    for point in series.points.iter().filter(|point| point.y.is_finite()) {
        if let Some((low, high)) = point.interval {
            let _ = write!(
                svg,
                r#"<line x1="{0:.1}" y1="{1:.1}" x2="{0:.1}" y2="{2:.1}" stroke="{color}" stroke-opacity="0.6"/>"#,
                px(point.x),
                py(low),
                py(high)
            );
        }
        if series.markers {
            let _ = write!(
                svg,
                r##"<circle cx="{:.1}" cy="{:.1}" r="{}" fill="{color}" stroke="#ffffff"><title>{}</title></circle>"##,
                px(point.x),
                py(point.y),
                series.radius,
                escape(&point.note)
            );
        }
    }
}

fn legend(svg: &mut String, series: &Series, row: usize, left: f64) {
    let y = TOP + 12.0 + 19.0 * row as f64;
    let color = series.color;
    if series.line {
        let dash = if series.dashed {
            r#" stroke-dasharray="5 4""#
        } else {
            ""
        };
        let _ = write!(
            svg,
            r#"<line x1="{left}" y1="{y}" x2="{}" y2="{y}" stroke="{color}" stroke-width="2"{dash}/>"#,
            left + 20.0
        );
    }
    if series.markers {
        let _ = write!(
            svg,
            r#"<circle cx="{}" cy="{y}" r="{}" fill="{color}"/>"#,
            left + 10.0,
            series.radius
        );
    }
    let mut name: String = series.name.chars().take(25).collect();
    if name.len() < series.name.len() {
        name.push('\u{2026}');
    }
    let _ = write!(
        svg,
        r#"<text x="{}" y="{}" fill="{INK}">{}</text>"#,
        left + 27.0,
        y + 4.0,
        escape(&name)
    );
}

/// A grid of values between 0 and 1, dark for much: rows downwards, one cell for every column.
pub(crate) struct HeatMap {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// `[row * columns + column]`.
    pub(crate) values: Vec<f64>,
    pub(crate) notes: Vec<String>,
    pub(crate) row_label: &'static str,
    pub(crate) column_label: &'static str,
    /// What the ends of the scale are.
    pub(crate) scale: (String, String),
}

impl HeatMap {
    pub(crate) fn render(&self, title: &str) -> String {
        // Layers run to the right, heads downwards: models have far more layers than KV heads.
        let cell_x = (640.0 / self.columns.max(1) as f64).clamp(6.0, 34.0);
        let cell_y = (300.0 / self.rows.max(1) as f64).clamp(6.0, 30.0);
        let (left, top) = (56.0, 14.0);
        let (wide, high) = (cell_x * self.columns as f64, cell_y * self.rows as f64);
        let (width, height) = ((left + wide + 30.0).max(420.0), top + high + 92.0);
        let mut svg = open(width, height, title);
        for row in 0..self.rows {
            for column in 0..self.columns {
                let at = row * self.columns + column;
                let _ = write!(
                    svg,
                    r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{}"><title>{}</title></rect>"#,
                    left + cell_x * column as f64,
                    top + cell_y * row as f64,
                    cell_x - 1.0,
                    cell_y - 1.0,
                    shade(self.values[at]),
                    escape(&self.notes[at])
                );
            }
        }
        // Labels need some 22 units each.
        let step = |cell: f64| {
            (1_u8..)
                .find(|count| cell * f64::from(*count) >= 22.0)
                .map_or(1, usize::from)
        };
        for column in (0..self.columns).step_by(step(cell_x)) {
            let _ = write!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle" fill="{MUTED}">{column}</text>"#,
                left + cell_x * (column as f64 + 0.5),
                top + high + 15.0
            );
        }
        for row in (0..self.rows).step_by(step(cell_y)) {
            let _ = write!(
                svg,
                r#"<text x="{}" y="{:.1}" text-anchor="end" fill="{MUTED}">{row}</text>"#,
                left - 7.0,
                top + cell_y * (row as f64 + 0.5) + 4.0
            );
        }
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle" fill="{INK}">{}</text><text transform="translate(16 {:.1}) rotate(-90)" text-anchor="middle" fill="{INK}">{}</text>"#,
            left + wide / 2.0,
            top + high + 36.0,
            self.column_label,
            top + high / 2.0,
            self.row_label
        );
        let y = top + high + 54.0;
        for part in 0..40 {
            let _ = write!(
                svg,
                r#"<rect x="{:.1}" y="{y}" width="5" height="10" fill="{}"/>"#,
                left + 4.5 * f64::from(part),
                shade(f64::from(part) / 39.0)
            );
        }
        let _ = write!(
            svg,
            r#"<text x="{left}" y="{}" fill="{MUTED}">{}</text><text x="{}" y="{}" text-anchor="end" fill="{MUTED}">{}</text></svg>"#,
            y + 24.0,
            escape(&self.scale.0),
            left + 184.0,
            y + 24.0,
            escape(&self.scale.1)
        );
        svg
    }
}

/// From almost white to dark blue, evenly to the eye.
fn shade(value: f64) -> String {
    const STOPS: [[f64; 3]; 5] = [
        [239.0, 243.0, 255.0],
        [189.0, 215.0, 231.0],
        [107.0, 174.0, 214.0],
        [33.0, 113.0, 181.0],
        [8.0, 48.0, 107.0],
    ];
    let value = if value.is_finite() {
        value.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let place = value * (STOPS.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "an index of the stops")]
    let below = (place.floor() as usize).min(STOPS.len() - 2);
    let part = place - below as f64;
    let channel = |at: usize| {
        let (from, to) = (STOPS[below][at], STOPS[below + 1][at]);
        (from + (to - from) * part).round()
    };
    format!("rgb({},{},{})", channel(0), channel(1), channel(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_data() {
        let axis = Axis::from_zero("y");
        let found = ticks(&axis, [0.13, 0.94].into_iter());
        assert_eq!(found.at, [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        let axis = Axis::new("x", Scale::Binary);
        let found = ticks(&axis, [1000.0, 8192.0].into_iter());
        assert_eq!(found.at, [512.0, 1024.0, 2048.0, 4096.0, 8192.0]);
        let found = ticks(&Axis::new("y", Scale::Linear), std::iter::empty());
        assert_eq!(found.at, [0.0, 1.0]);
        let found = ticks(&Axis::new("y", Scale::Linear), [3.0].into_iter());
        assert!(found.low <= 3.0 && found.high > found.low);
    }

    #[test]
    fn names_cannot_break_out() {
        let chart = Chart {
            x: Axis::new("<x>", Scale::Linear),
            y: Axis::from_zero("y"),
            series: vec![Series::line(
                "</svg><script>",
                0,
                vec![Point {
                    x: 1.0,
                    y: f64::NAN,
                    interval: None,
                    note: "\"'\u{7}".into(),
                }],
            )],
        };
        let svg = chart.render("a & b");
        assert!(!svg.contains("<script>") && !svg.contains("NaN"));
        assert_eq!(svg.matches("</svg>").count(), 1);
        assert_eq!(escape("\"'\u{7}&"), "&quot;&#39; &amp;");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(0.25), "0.25");
        assert_eq!(number(1234.5), "1234");
        assert_eq!(number(1.5e-7), "1.5e-7");
        assert_eq!(tokens(4096.0), "4k");
        assert_eq!(tokens(1536.0), "1536");
    }
}
