//! A panel, and how rows of them are laid out.

use serde_json::{Value, json};

/// What a panel is drawn as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stat,
    Gauge,
    Lines,
    Heatmap,
    Bars,
}

/// A panel without its place.
pub(super) struct Panel {
    kind: Kind,
    title: &'static str,
    description: String,
    unit: &'static str,
    width: u64,
    queries: Vec<(String, &'static str)>,
    steps: Vec<(f64, &'static str)>,
    colours: Vec<(&'static str, &'static str)>,
    bounds: Vec<&'static str>,
    is_stacked: bool,
    max: Option<f64>,
    category: &'static str,
}

/// A panel says what it shows, and what to do when that looks wrong.
fn panel(kind: Kind, title: &'static str, unit: &'static str, shows: &str, wrong: &str) -> Panel {
    Panel {
        kind,
        title,
        description: format!("{shows}\n\n**When it looks wrong:** {wrong}"),
        unit,
        width: if matches!(kind, Kind::Stat | Kind::Gauge) { 4 } else { 12 },
        queries: Vec::new(),
        steps: Vec::new(),
        colours: Vec::new(),
        bounds: Vec::new(),
        is_stacked: false,
        max: None,
        category: "",
    }
}

/// The last value.
pub(super) fn stat(title: &'static str, unit: &'static str, shows: &str, wrong: &str) -> Panel {
    panel(Kind::Stat, title, unit, shows, wrong)
}

/// The last value, of a whole.
pub(super) fn gauge(title: &'static str, unit: &'static str, shows: &str, wrong: &str) -> Panel {
    panel(Kind::Gauge, title, unit, shows, wrong).max(1.0)
}

/// Over time.
pub(super) fn lines(title: &'static str, unit: &'static str, shows: &str, wrong: &str) -> Panel {
    panel(Kind::Lines, title, unit, shows, wrong)
}

/// The buckets of a histogram over time.
pub(super) fn heatmap(title: &'static str, unit: &'static str, shows: &str, wrong: &str) -> Panel {
    panel(Kind::Heatmap, title, unit, shows, wrong)
}

/// One bar for each value of a label whose values are numbers, in their order.
pub(super) fn bars(title: &'static str, unit: &'static str, category: &'static str, shows: &str, wrong: &str) -> Panel {
    Panel { category, ..panel(Kind::Bars, title, unit, shows, wrong) }
}

impl Panel {
    /// A line, by what it is called.
    pub(super) fn query(mut self, query: impl Into<String>, legend: &'static str) -> Self {
        self.queries.push((query.into(), legend));
        self
    }

    /// A bound of the others: a dashed line of its own, which is not stacked on them.
    pub(super) fn bound(mut self, query: impl Into<String>, legend: &'static str) -> Self {
        self.bounds.push(legend);
        self.query(query, legend)
    }

    /// In twenty-fourths of the page.
    pub(super) fn width(self, width: u64) -> Self {
        Self { width, ..self }
    }

    pub(super) fn stacked(self) -> Self {
        Self { is_stacked: true, ..self }
    }

    pub(super) fn max(self, max: f64) -> Self {
        Self { max: Some(max), ..self }
    }

    /// From a value on, it has this colour.
    pub(super) fn from(mut self, value: f64, colour: &'static str) -> Self {
        self.steps.push((value, colour));
        self
    }

    /// The line of this name has this colour.
    pub(super) fn colour(mut self, line: &'static str, colour: &'static str) -> Self {
        self.colours.push((line, colour));
        self
    }

    fn height(&self) -> u64 {
        if matches!(self.kind, Kind::Stat | Kind::Gauge) { 4 } else { 8 }
    }

    fn to_json(&self, id: u64, [x, y, height]: [u64; 3]) -> Value {
        let first = [json!({"color": "green", "value": null})];
        let more = self.steps.iter().map(|(value, colour)| json!({"color": colour, "value": value}));
        let steps: Vec<_> = first.into_iter().chain(more).collect();
        let mut defaults = json!({
            "unit": self.unit,
            "noValue": "no data",
            "mappings": [{"type": "special", "options": {"match": "nan", "result": {"index": 0, "text": "none"}}}],
            "thresholds": {"mode": "absolute", "steps": steps},
            "color": {"mode": if matches!(self.kind, Kind::Stat | Kind::Gauge) { "thresholds" } else { "palette-classic" }},
            "custom": self.custom(),
            "min": 0,
        });
        if let Some(max) = self.max {
            defaults["max"] = json!(max);
        }
        let change = |line: &str, properties: Value| json!({"matcher": {"id": "byName", "options": line}, "properties": properties});
        let fixed = |colour: &str| json!({"id": "color", "value": {"mode": "fixed", "fixedColor": colour}});
        let colours = self.colours.iter().map(|(line, colour)| change(line, json!([fixed(colour)])));
        let bounds = self.bounds.iter().map(|line| {
            let dashed = json!([
                fixed("orange"),
                {"id": "custom.stacking", "value": {"group": false, "mode": "none"}},
                {"id": "custom.fillOpacity", "value": 0},
                {"id": "custom.showPoints", "value": "never"},
                {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
            ]);
            change(line, dashed)
        });
        let overrides: Vec<_> = colours.chain(bounds).collect();
        let mut whole = json!({
            "id": id,
            "type": self.word(),
            "title": self.title,
            "description": self.description,
            "datasource": source(),
            "fieldConfig": {"defaults": defaults, "overrides": overrides},
            "gridPos": {"h": height, "w": self.width, "x": x, "y": y},
            "options": self.options(),
            "targets": self.queries.iter().enumerate().map(|(at, query)| self.target(at, query)).collect::<Vec<_>>(),
        });
        if self.kind == Kind::Bars {
            // Bars want a text, and numbers have an order.
            let conversion = |to: &str| json!({"targetField": self.category, "destinationType": to});
            let convert =
                |to| json!({"id": "convertFieldType", "options": {"fields": {}, "conversions": [conversion(to)]}});
            whole["transformations"] = json!([
                convert("number"),
                {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": self.category}]}},
                convert("string"),
                {"id": "organize", "options": {"excludeByName": {"Time": true}, "renameByName": {"Value": self.title}}},
            ]);
        }
        whole
    }

    fn word(&self) -> &'static str {
        match self.kind {
            Kind::Stat => "stat",
            Kind::Gauge => "gauge",
            Kind::Lines => "timeseries",
            Kind::Heatmap => "heatmap",
            Kind::Bars => "barchart",
        }
    }

    fn target(&self, at: usize, (query, legend): &(String, &str)) -> Value {
        let letter = char::from(b'A' + u8::try_from(at).unwrap());
        let format = match self.kind {
            Kind::Heatmap => "heatmap",
            Kind::Bars => "table",
            _ => "time_series",
        };
        let (instant, range) = (self.kind == Kind::Bars, self.kind != Kind::Bars);
        json!({
            "refId": letter.to_string(),
            "datasource": source(),
            "editorMode": "code",
            "expr": query,
            "legendFormat": legend,
            "format": format,
            "instant": instant,
            "range": range,
        })
    }

    fn custom(&self) -> Value {
        let linear = json!({"type": "linear"});
        match self.kind {
            Kind::Stat | Kind::Gauge => json!({}),
            Kind::Heatmap => json!({
                "hideFrom": {"legend": false, "tooltip": false, "viz": false},
                "scaleDistribution": linear,
            }),
            Kind::Bars => {
                json!({"axisPlacement": "auto", "fillOpacity": 80, "lineWidth": 1, "scaleDistribution": linear})
            }
            Kind::Lines => json!({
                "axisPlacement": "auto",
                "axisSoftMin": 0,
                "drawStyle": "line",
                "fillOpacity": if self.is_stacked { 40 } else { 8 },
                "gradientMode": "none",
                "lineInterpolation": "linear",
                "lineWidth": 1,
                "pointSize": 5,
                "scaleDistribution": linear,
                "showPoints": "auto",
                "spanNulls": false,
                "stacking": {"group": "A", "mode": if self.is_stacked { "normal" } else { "none" }},
                "thresholdsStyle": {"mode": "off"},
            }),
        }
    }

    fn options(&self) -> Value {
        let last = json!({"calcs": ["lastNotNull"], "fields": "", "values": false});
        match self.kind {
            Kind::Stat => json!({
                "colorMode": "value",
                "graphMode": if self.queries.len() == 1 { "area" } else { "none" },
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": last,
                "textMode": if self.queries.len() == 1 { "auto" } else { "value_and_name" },
                "wideLayout": true,
            }),
            Kind::Gauge => json!({
                "orientation": "auto",
                "reduceOptions": last,
                "showThresholdLabels": false,
                "showThresholdMarkers": true,
                "sizing": "auto",
                "minVizHeight": 75,
                "minVizWidth": 75,
            }),
            Kind::Lines => {
                // Three rows of a table are seen; more names are seen at once in a list.
                let are_many = self.queries.len() > 3 || self.queries.iter().any(|(_, legend)| legend.contains("{{"));
                let (form, values) =
                    if are_many { ("list", vec!["lastNotNull"]) } else { ("table", vec!["lastNotNull", "max"]) };
                json!({
                    "legend": {"calcs": values, "displayMode": form, "placement": "bottom", "showLegend": true},
                    "tooltip": {"mode": "multi", "sort": "desc", "hideZeros": false},
                })
            }
            Kind::Bars => json!({
                "xField": self.category,
                "orientation": "auto",
                "showValue": "auto",
                "barWidth": 0.9,
                "groupWidth": 0.7,
                "stacking": "none",
                "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": false},
                "tooltip": {"mode": "single", "sort": "none", "hideZeros": false},
            }),
            Kind::Heatmap => json!({
                "calculate": false,
                "cellGap": 1,
                "cellValues": {"unit": "short", "decimals": 1},
                "color": {
                    "mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "fill": "dark-orange", "reverse": false,
                    "scale": "exponential", "steps": 64,
                },
                "exemplars": {"color": "rgba(255,0,255,0.7)"},
                "filterValues": {"le": 1e-9},
                "legend": {"show": true},
                "rowsFrame": {"layout": "auto"},
                "showValue": "never",
                "tooltip": {"mode": "single", "yHistogram": true, "showColorScale": false},
                "yAxis": {"axisPlacement": "left", "reverse": false, "unit": self.unit},
            }),
        }
    }
}

pub(super) fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// Rows from the top down, each with its title above, and each panel to the right of the one before while there is room.
pub(super) fn lay_out(rows: &[(&str, Vec<Panel>)]) -> Vec<Value> {
    let (mut laid, mut y) = (Vec::new(), 0);
    for (title, panels) in rows {
        let place = json!({"h": 1, "w": 24, "x": 0, "y": y});
        laid.push(json!({
            "id": laid.len() + 1, "type": "row", "collapsed": false, "panels": [], "title": title, "gridPos": place,
        }));
        y += 1;
        let mut left = &panels[..];
        while !left.is_empty() {
            let mut end = 0;
            let fits = left.iter().take_while(|panel| {
                end += panel.width;
                end <= 24
            });
            let (line, rest) = left.split_at(fits.count());
            // All of a line are as high as the highest, so that it has no hole.
            let height = line.iter().map(Panel::height).max().unwrap();
            let mut x = 0;
            for panel in line {
                laid.push(panel.to_json(laid.len() as u64 + 1, [x, y, height]));
                x += panel.width;
            }
            (left, y) = (rest, y + height);
        }
    }
    laid
}
