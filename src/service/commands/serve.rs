//! `evalpool serve`: opens the folder and the listener, serves, and drains at the end.
//!
//! # The built-in evaluator
//!
//! `greet` is registered at each start unless the folder has an evaluator of that name. An upload replaces it for good.
//! If you delete it, or its replacement, `greet` returns at the next start.
//!
//! # The end
//!
//! On the first SIGTERM or SIGINT the server takes no more work: `/readyz` and every `/v1` request answer 503. It keeps
//! listening meanwhile: a load balancer learns more from a 503 than from a refused connection. Calls in flight may run
//! for `pool.grace`, or until a second signal; the server then interrupts them and answers `shutting_down`. At last it
//! closes the listener, sends the answers that are ready, and exits with 0.

use std::{
    future::pending,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    signal::unix::Signal,
    sync::oneshot,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};

use super::signals::{Signals, hangup};
use crate::{
    CloseReport, EvaluatorPool, Settings,
    config::{EngineKind, ServiceSettings},
    service::{
        Exit, blocking_threads,
        connections::Connections,
        document::{Ceilings, MAX_DOCUMENT},
        exit::print,
        exporter::{Exporter, UPKEEP},
        greet,
        guests::Guests,
        host,
        http::{self, App, Tokens},
        listen,
        store::Store,
        ui,
    },
    units::Size,
};

pub(in crate::service) async fn serve(
    mut settings: Settings,
    config: Option<PathBuf>,
    exporter: Exporter,
) -> Result<(), Exit> {
    let tokens = read_tokens(&settings.service)?.map(Arc::new);
    let has_tokens = tokens.is_some();
    if settings.engine.kind == EngineKind::Extism && !settings.engine.trusted {
        let line = "the extism engine takes trusted plugins only; set engine.trusted = true, or use the direct engine";
        return Err(Exit::unusable(line));
    }
    check_body_memory(&settings)?;
    let fit = host::check(&settings).map_err(Exit::unusable)?;
    settings.service.max_connections = fit.connections;
    let service = &settings.service;
    let mut signals = Signals::new()?;
    let hangup = (tokens.is_some() || config.is_some()).then(hangup).transpose()?;
    // Bind first: a server that cannot listen must not touch the folder.
    let (listener, address) = listen_on(service.listen)?;
    let admin = service.admin_listen.map(listen_on).transpose()?;
    let pool = EvaluatorPool::from_settings(&settings)?;
    if let Some(hangup) = hangup {
        tokio::spawn(read_again(tokens.clone(), config, pool.clone(), hangup));
    }
    let ceilings = Ceilings::new(&settings);
    let store = open_store(service, &ceilings, &pool)?;
    let guests = Guests::start(blocking_threads(&settings.pool))?;
    let app = Arc::new(App::new(pool.clone(), store, ceilings, &settings, tokens, exporter.clone(), guests));

    let (stop, stopped) = oneshot::channel::<()>();
    let router = http::router(app.clone());
    let server = tokio::spawn(listen::serve(listener, router, app.connections().clone(), async {
        // Ends also if the sender is gone.
        let _ = stopped.await;
    }));
    let admin = admin.map(|(listener, address)| {
        tracing::info!(%address, "health, readiness and metrics are here as well");
        let connections = Connections::of_operators(service);
        tokio::spawn(listen::serve(listener, http::admin_router(app.clone()), connections, pending()))
    });
    let sampling = app.ui().map(|ui| ui::watch(ui, pool.clone(), exporter.clone()));
    if let Some(Err(error)) = &sampling {
        tracing::warn!(%error, "the page shows nothing of what comes: there is no thread for its samples");
    }
    let upkeep = tokio::spawn(keep_up(exporter));
    print(greeting(address, has_tokens))?;
    for warning in &fit.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!("runtimes may hold {} (pool.memory)", Size(settings.pool.memory));
    tracing::info!(%address, "listening");

    signals.next().await;
    tracing::info!(grace = ?settings.pool.grace, "draining; a second signal ends that");
    app.work().drain();
    tokio::select! {
        _ = timeout(settings.pool.grace, app.work().idle()) => {}
        () = signals.next() => {}
    }
    if let CloseReport::Unfinished { remaining } = pool.close_with(Duration::ZERO).await {
        tracing::warn!(remaining, "ending although some plugins cannot be interrupted");
    }
    let _ = stop.send(());
    let outcome = server.await;
    // Whatever anybody may be billed for has ended.
    let _ = spawn_blocking(move || pool.report_usage()).await;
    upkeep.abort();
    drop(sampling);
    if let Some(admin) = admin {
        admin.abort();
    }
    tracing::info!("ended");
    outcome.map_err(|error| Exit::failed(format!("the server broke down: {error}")))
}

fn read_tokens(service: &ServiceSettings) -> Result<Option<Tokens>, Exit> {
    let tokens = service.token_file.as_deref().map(|path| {
        Tokens::read(path)
            .map_err(|error| Exit::unusable(format!("cannot use service.token_file {}: {error}", path.display())))
    });
    let addresses = [Some(service.listen), service.admin_listen];
    let mut open = addresses.into_iter().flatten().filter(|address| !address.ip().to_canonical().is_loopback());
    if let (None, Some(address)) = (&tokens, open.next()) {
        return Err(Exit::unusable(format!(
            "{address} can be reached from other machines; set service.token_file, or listen on 127.0.0.1"
        )));
    }
    tokens.transpose()
}

fn listen_on(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Exit> {
    let listening = listen::bind(address).and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    listening.map_err(|error| Exit::unusable(format!("cannot listen on {address}: {error}")))
}

/// What the limits let a single request hold must find room while nobody else holds anything.
fn check_body_memory(Settings { limits, service, .. }: &Settings) -> Result<(), Exit> {
    let evaluation = limits.input_size.max(limits.output_size).saturating_mul(8);
    let upload = limits.plugin_size.saturating_add(MAX_DOCUMENT).saturating_mul(2);
    let least = evaluation.max(upload);
    if service.body_memory >= least {
        return Ok(());
    }
    Err(Exit::unusable(format!(
        "service.body_memory is {}; with these limits.input_size, output_size and plugin_size it must be at least {}",
        Size(service.body_memory),
        Size(least)
    )))
}

/// At each SIGHUP.
async fn read_again(tokens: Option<Arc<Tokens>>, config: Option<PathBuf>, pool: EvaluatorPool, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let (tokens, config, pool) = (tokens.clone(), config.clone(), pool.clone());
        let read = spawn_blocking(move || {
            match tokens.map(|tokens| tokens.read_again()) {
                Some(Ok(())) => tracing::info!("service.token_file was read again"),
                Some(Err(error)) => {
                    tracing::error!(%error, "service.token_file cannot be read; the tokens stay as they are");
                }
                None => {}
            }
            if let Some(file) = config {
                match Settings::load(Some(&file)).and_then(|read| pool.set_tenants(read.tenants)) {
                    Ok(()) => tracing::info!("the bounds of tenants were read again; other settings stay as they are"),
                    Err(error) => tracing::error!(%error, "the bounds of tenants stay as they are"),
                }
            }
        });
        if let Err(error) = read.await {
            tracing::error!(%error, "nothing was read again");
        }
    }
}

/// Opens the folder and registers the evaluators in it, cold, and the built-in one unless it was replaced.
fn open_store(service: &ServiceSettings, ceilings: &Ceilings, pool: &EvaluatorPool) -> Result<Store, Exit> {
    let folder = &service.data;
    if folder.to_string_lossy().contains("://") {
        return Err(Exit::unusable(format!("service.data is {}; only a local folder can be used", folder.display())));
    }
    let (store, stored) = Store::open(folder, ceilings)
        .map_err(|error| Exit::unusable(format!("cannot use the data folder {}: {error}", folder.display())))?;
    tracing::info!(evaluators = stored.len(), folder = %folder.display(), "stored evaluators");
    for (name, spec) in stored {
        pool.register_again(&name, spec)?;
    }
    if pool.get(greet::NAME).is_none() {
        pool.register(greet::NAME, greet::spec())?;
        store.built_in(greet::NAME);
    }
    Ok(store)
}

/// Says where the server listens, and a command to try.
fn greeting(address: SocketAddr, has_tokens: bool) -> String {
    // A request cannot be sent to the unspecified address.
    let reached = match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        _ => address,
    };
    let token = if has_tokens { " -H 'authorization: Bearer TOKEN'" } else { "" };
    format!(
        "evalpool listens on http://{address}\ntry: curl{token} -d '{}' http://{reached}/v1/evaluators/{}\n",
        greet::INPUT,
        greet::NAME
    )
}

async fn keep_up(exporter: Exporter) {
    let mut ticks = interval(UPKEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        exporter.run_upkeep();
    }
}
